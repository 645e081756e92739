"""`magbay director test`: every link of the chain from the console to the Changer Command, in the operator's words."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from appliance.changer.service import Changer
from appliance.config.schema import Config
from appliance.director import record, rights
from appliance.director.console import Console, check_readable, open_console
from appliance.director.ours import media_type
from appliance.director.pieces import archive_device
from appliance.director.plan import Offer, plan, quoted
from appliance.director.replies import StorageStatus, names, storage_status, volumes
from appliance.errors import MagbayError


@dataclass(frozen=True)
class Finding:
    """One *link* of the chain, whether it holds, what was found, what to do."""

    link: str
    ok: bool
    text: str
    hint: str = ""


def check(config: Config, file: Path, console: Console | None = None) -> list[Finding]:
    """Check the chain of the configuration *file*; nothing is changed. Stops at a link that the rest hangs on."""
    found: list[Finding] = []
    links = [_console_config, _answer, _storage, _devices, _changer, _rights, _pools, _catalog]
    try:
        talker = console or open_console(config.director)
        for link in links:
            found.extend(link(config, file, talker))
            if not found[-1].ok and link in (_console_config, _answer, _storage):
                break
    except MagbayError as error:
        found.append(Finding("Director", False, error.message, error.hint))
    return found


def _console_config(config: Config, file: Path, console: Console) -> Iterator[Finding]:
    path = config.director.console_config
    try:
        check_readable(path)
    except MagbayError as error:
        yield Finding("console configuration", False, error.message, error.hint)
        return
    if path.stat().st_mode & stat.S_IROTH:
        yield Finding("console password", False, f"{path} can be read by everybody", "chmod 640, group magbay.")
    agent = (config.state_dir if config.state_dir.is_dir() else path).stat().st_uid
    if not rights.may_read(path, agent):
        text = f"{path} cannot be read by the user of the changer agent (number {agent})"
        yield Finding("console configuration", False, text, "chgrp magbay, chmod 640.")
        return
    yield Finding("console configuration", True, str(path))


def _answer(config: Config, file: Path, console: Console) -> Iterator[Finding]:
    try:
        reply = console.send("version")
    except MagbayError as error:
        yield Finding("Director", False, error.message, "Is it running, is the name and password the Director's own?")
        return
    version = re.search(r"(\S+) Version: (\S+)", reply)
    yield Finding("Director", True, f"{version[1]} answers, version {version[2]}" if version else "answers")


def _storage(config: Config, file: Path, console: Console) -> Iterator[Finding]:
    name = config.director.storage
    known = names(console.send(".storage"))
    if name not in known:
        yield Finding(
            "Storage resource",
            False,
            f"the Director has none called {name}",
            "Include the Director's piece of 'magbay director config' and reload, or correct director.storage.",
        )
        return
    try:
        _status(config, console)
    except MagbayError as error:
        yield Finding("storage daemon", False, error.message, error.hint)
        return
    yield Finding("storage daemon", True, f"is reached through the storage {name}")


def _status(config: Config, console: Console) -> StorageStatus:
    return storage_status(console.send(f"status storage={quoted(config.director.storage)}"))


def _devices(config: Config, file: Path, console: Console) -> Iterator[Finding]:
    wanted = [archive_device(config, number) for number in range(config.changer.drives)]
    there = _status(config, console).paths
    absent = [path for path in wanted if path not in there]
    if absent:
        yield Finding(
            "devices",
            False,
            f"no device of the storage daemon has the Archive Device {' or '.join(absent)} (it has: "
            f"{', '.join(there) or 'none'})",
            "Include the storage daemon's piece of 'magbay director config' and restart it.",
        )
    else:
        yield Finding("devices", True, f"all {len(wanted)} virtual drives are devices of the storage daemon")


def _changer(config: Config, file: Path, console: Console) -> Iterator[Finding]:
    """Ask the changer the long way: Director, storage daemon, Changer Command."""
    reply = console.send(f"status slots storage={quoted(config.director.storage)} drive=0")
    complaint = next((line.strip() for line in reply.splitlines() if re.match(r"39\d\d ", line)), "")
    count = re.search(r"has (\d+) slots", reply)
    ours = [slot for slot in Changer.open(file).look(thorough=False)[0] if slot.attached]
    listed = {int(slot): name for slot, name in re.findall(r"^\|\s*(\d+)\*?\|\s*(\S+)\s*\|", reply, re.MULTILINE)}
    listed = {slot: name for slot, name in listed.items() if name != "|"}
    if complaint or count is None:
        yield Finding(
            "Changer Command",
            False,
            complaint or "the storage daemon got no answer from it",
            f"Run it as the daemon's user: magbay-changer {file} list 0 x 0. That user must be able to read {file} and "
            f"to write in {config.run_dir}.",
        )
    elif int(count[1]) != config.changer.slots:
        yield Finding(
            "Changer Command",
            False,
            f"the Director was told of {count[1]} slots, the configuration says {config.changer.slots}",
            "Changer Device must name this configuration; a Bareos Director learns a new number when it restarts.",
        )
    elif listed and any(listed.get(slot.slot) != slot.volume for slot in ours):
        yield Finding(
            "Changer Command",
            False,
            "the storage daemon is told of other volumes than 'magbay slots' shows",
            "Changer Device must name this configuration.",
        )
    else:
        yield Finding("Changer Command", True, f"{count[1]} slots, {len(ours)} volumes in them")


def _rights(config: Config, file: Path, console: Console) -> Iterator[Finding]:
    """Whether a storage daemon on this machine may load and write what it is told of; one that may is enough."""
    daemons = [who for who in rights.storage_daemons() if rights.can_check(who)]
    found = {who.name: rights.complaint(file, who) for who in daemons}
    if not found:
        text = "not checked: no storage daemon runs here whose user we could act as; root can act as any"
        yield Finding("rights", True, text)
    elif good := [name for name, complaint in found.items() if not complaint]:
        yield Finding("rights", True, f"user {good[0]} may use the virtual drives and the volumes in the bays")
    else:
        text = next(iter(found.values()))
        hint = "prepare.owner and prepare.group say whom new magazines are given to; see docs/director.md."
        yield Finding("rights", False, text, hint)


def _pools(config: Config, file: Path, console: Console) -> Iterator[Finding]:
    known = names(console.send(".pools"))
    wanted = dict.fromkeys([config.director.pool, *config.director.pools.values()])
    absent = [name for name in wanted if name not in known]
    if absent:
        yield Finding(
            "pools", False, f"the Director has no pool {' or '.join(absent)}", "Define it, or correct director.pool."
        )
    else:
        yield Finding("pools", True, ", ".join(wanted))


def _catalog(config: Config, file: Path, console: Console) -> Iterator[Finding]:
    slots = Changer.open(file).look(thorough=False)[0]
    offer = Offer.of(slots)
    catalog = volumes(console.send("list volumes"))
    wanted = media_type(config.director, console)
    other = sorted(n for n, v in catalog.items() if n in offer.known and v.media_type != wanted)
    found = plan(offer, catalog, record.disabled(config.state_dir), wanted)
    if other:
        yield Finding(
            "catalog",
            False,
            f"volumes with another Media Type than {wanted}: {', '.join(other[:5])}",
            "Media Type must be the same in director.media_type, the Device and the Storage resource.",
        )
    elif not found.empty:
        yield Finding(
            "catalog", False, "differs from the slots", "'magbay director sync' corrects it; is the agent running?"
        )
    else:
        unknown = f"; {len(found.unknown)} volumes are not known to it yet" if found.unknown else ""
        yield Finding("catalog", True, f"agrees with the slots{unknown}")
