"""Compares two trees file by file; runs inside the guest: python3 compare.py SOURCE COPY [--contents-only].

Names, types, modes, owners, times (whole seconds, as the volume format keeps them), link targets, which names are
one file, device numbers, contents. Prints one line a difference and a closing count; exit status 1 on differences.
"""

import hashlib
import os
import stat
import sys


def walk(top: str) -> dict[str, os.stat_result]:
    found = {".": os.lstat(top)}
    for folder, folders, files in os.walk(top):
        for name in folders + files:
            path = os.path.join(folder, name)
            found[os.path.relpath(path, top)] = os.lstat(path)
    return found


def digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def facts(
    top: str, name: str, status: os.stat_result, first_of: dict[int, str], contents_only: bool
) -> dict[str, object]:
    path = os.path.join(top, name)
    found: dict[str, object] = {"type": stat.S_IFMT(status.st_mode)}
    if stat.S_ISREG(status.st_mode):
        found |= {"size": status.st_size, "content": digest(path)}
    if stat.S_ISLNK(status.st_mode):
        found["target"] = os.readlink(path)
    if contents_only:
        return found
    found |= {"uid": status.st_uid, "gid": status.st_gid, "mtime": int(status.st_mtime // 1)}
    if not stat.S_ISLNK(status.st_mode):
        found["mode"] = stat.S_IMODE(status.st_mode)
    if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
        found["same file as"] = first_of.setdefault(status.st_ino, name)
    if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
        found["device"] = status.st_rdev
    return found


def main() -> int:
    source, copy = sys.argv[1:3]
    contents_only = "--contents-only" in sys.argv
    left, right = walk(source), walk(copy)
    differences = [f"only in the source: {name}" for name in sorted(left.keys() - right.keys())]
    differences += [f"only in the copy: {name}" for name in sorted(right.keys() - left.keys())]
    first_left: dict[int, str] = {}
    first_right: dict[int, str] = {}
    for name in sorted(left.keys() & right.keys()):
        a = facts(source, name, left[name], first_left, contents_only)
        b = facts(copy, name, right[name], first_right, contents_only)
        differences += [f"{name}: {key}: {a.get(key)} != {b.get(key)}" for key in a if a.get(key) != b.get(key)]
    for line in differences[:40]:
        print(line)
    print(f"{len(left)} names compared, {len(differences)} differences")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
