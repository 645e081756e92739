"""The options -u and -g of the Changer Command: run as another user when started by root."""

from __future__ import annotations

import grp
import os
import pwd

from appliance.errors import MagbayError, NotFoundError, PermissionDeniedError


def become(user: str, group: str) -> None:
    """Run as *user* and *group* (names or numbers, empty: leave). Never goes on as somebody else.

    Raises `NotFoundError` for unknown names and `PermissionDeniedError` for anybody but root, unless this process
    has that identity already.
    """
    account = _user(user) if user else None
    gid = _group(group) if group else account.pw_gid if account else os.getegid()
    uid = account.pw_uid if account else os.geteuid()
    if os.geteuid() != 0:
        mine = {os.getegid(), *os.getgroups()}
        if uid != os.geteuid() or (group and gid not in mine):
            raise PermissionDeniedError(
                f"only root may run this as user {user or uid}, group {group or gid}", hint="Leave out -u and -g."
            )
        return
    try:
        if account:
            os.initgroups(account.pw_name, gid)
        os.setgid(gid)
        os.setuid(uid)
    except OSError as error:
        raise MagbayError(f"cannot run as user {uid}, group {gid}: {error.strerror}") from None


def _user(text: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwuid(int(text)) if _is_number(text) else pwd.getpwnam(text)
    except (KeyError, OverflowError, ValueError):
        raise NotFoundError(f"there is no user {text!r}") from None


def _group(text: str) -> int:
    try:
        return (grp.getgrgid(int(text)) if _is_number(text) else grp.getgrnam(text)).gr_gid
    except (KeyError, OverflowError, ValueError):
        raise NotFoundError(f"there is no group {text!r}") from None


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()
