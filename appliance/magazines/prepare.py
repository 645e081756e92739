"""Making a magazine out of a blank disk: overwrite, LUKS2, file system, test, enrolment.

Runs as root. The whole disk is locked (flock) meanwhile, so that udev looks at it only when all is done; the tools that
are called inherit the lock, so that a second run waits for what a killed first one has left running. How far it has
come is remembered (`preparations`): the same command goes on after an interruption anywhere.
"""

from __future__ import annotations

import contextlib
import dataclasses
import grp
import os
import pwd
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from appliance.config.schema import Config, Enrolment
from appliance.errors import MagbayError, PermissionDeniedError
from appliance.host.api import BlockDevice, Devices, Mounts
from appliance.host.commands import run
from appliance.host.files import locked
from appliance.keys import keyfile, rotation
from appliance.magazines import candidate, containers, filesystems, preparations, trial
from appliance.magazines.enrolment import check_name, enrol, printable
from appliance.magazines.exclusive import only_one, whole_disk
from appliance.magazines.filesystems import Filesystem
from appliance.magazines.health import Condition, Health
from appliance.magazines.preparations import Phase, Preparation
from appliance.magazines.wipe import Wipe, Wiped, WipeStopped, discard, overwrite

_KEY_SLOT = 0  # of the key file in a container that was only just made
_AGAIN = "Put that right and run the same command again: it goes on from there."


@dataclass(frozen=True)
class Request:
    """What somebody wants: see `magbay prepare --help`."""

    node: Path
    name: str
    wipe: Wipe = Wipe.RANDOM
    filesystem: Filesystem = Filesystem.EXT4
    overwrite_serial: str = ""
    restart_wipe: bool = False


@dataclass(frozen=True)
class Plan:
    """What will be done to which disk. *goes_on*: behind an earlier run; *replaces*: the enrolment that ends."""

    device: BlockDevice
    filesystem: Filesystem
    state: Preparation
    goes_on: bool = False
    replaces: Enrolment | None = None
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of the magazine."""
        return self.state.name

    @property
    def enrolled(self) -> bool:
        """Whether only its volumes are missing."""
        return self.state.phase is Phase.ENROLLED

    def steps(self, config: Config) -> tuple[str, ...]:
        """The plan in words, without the volumes."""
        if self.enrolled:
            return ()
        node, state = self.device.node, self.state
        return (
            f"use the key file {config.key_file}, made if it does not exist",
            self._wiping(),
            f"make a LUKS2 container {state.luks_uuid} with the label {self.name} on {node}",
            f"make the file system {self.filesystem.value} {state.filesystem_uuid} in it",
            f"give it to {config.prepare.owner}:{config.prepare.group} with the mode {config.prepare.mode}",
            "test it: write, lock, unlock, read back, compare",
            f"save its LUKS header below {config.state_dir / 'headers'}",
            f"enrol it as magazine {self.name}"
            + (f", and forget the magazine {self.replaces.name} that it was" if self.replaces else ""),
        )

    def _wiping(self) -> str:
        size, done = self.device.size, self.state.wiped.done
        if self.state.wipe is Wipe.DISCARD:
            return "discard all blocks (what was on them is dropped; an expert may still find it)"
        if self.state.wipe is Wipe.NONE:
            return "leave old contents as they are (they stay readable below the new ones)"
        if done >= size:
            return f"(all {size} bytes are overwritten with random data already)"
        rest = f", going on at {done} ({done * 100 // size} %)" if done else ""
        return f"overwrite all {size} bytes with random data{rest}"


def plan(request: Request, config: Config, devices: Devices, mounts: Mounts) -> Plan:
    """A plan for the disk, or the reason why not. Changes nothing.

    Raises `NotFoundError`, `PermissionDeniedError` or `MagbayError` when the disk must not be used.
    """
    if os.geteuid() != 0:
        raise PermissionDeniedError("preparing a disk needs root", hint="Run it with sudo.")
    around = candidate.look(devices, mounts, request.node)
    device = around.device
    unfinished = preparations.read(config, device)
    enrolled = candidate.enrolled_as(around, config)
    if enrolled and unfinished and _only_volumes_missing(request, enrolled, unfinished):
        state = dataclasses.replace(unfinished, phase=Phase.ENROLLED)
        return Plan(device, request.filesystem, state, goes_on=True)
    if enrolled or (unfinished and unfinished.phase is Phase.ENROLLED):
        unfinished = None  # it has been in use since then
    never = candidate.hindrance(around, unfinished, filesystems.LEAST_BYTES[request.filesystem])
    if never:
        whose = f" (magazine {enrolled.name})" if enrolled else ""
        raise MagbayError(f"{device.node} is not touched: {never}{whose}", hint="Take a blank disk that is not in use.")
    health = candidate.health(device.node)
    if health.condition is Condition.FAILING and config.health.refuse_failing:
        raise MagbayError(
            f"{device.node} is not touched: it is failing, it says: {health.reason}", hint="Take another disk."
        )
    _check_owner(config)
    filesystems.check(request.filesystem)
    replaces = _agreed(request, device, enrolled, around, unfinished)
    check_name(config, request.name, replaces.filesystem_uuid if replaces else "")
    state = _begin(request, device, unfinished)
    return Plan(
        device,
        request.filesystem,
        state,
        goes_on=state.wiped.done > 0,
        replaces=replaces,
        notes=_notes(device, state, health),
    )


def _only_volumes_missing(request: Request, enrolled: Enrolment, unfinished: Preparation) -> bool:
    """Whether an earlier run for the same magazine got as far as its enrolment; a kill may come before the record."""
    same = (enrolled.luks_uuid, enrolled.name) == (unfinished.luks_uuid, request.name)
    return same and unfinished.phase is not Phase.WIPING and not request.overwrite_serial


def _agreed(
    request: Request,
    device: BlockDevice,
    enrolled: Enrolment | None,
    around: candidate.Surroundings,
    unfinished: Preparation | None,
) -> Enrolment | None:
    """Refuse to lose what is on the disk unless its exact serial number was given; the enrolment that then ends."""
    lost = f"it is magazine {enrolled.name}" if enrolled else candidate.content(around, unfinished)
    if not lost:
        return None
    if not device.serial:
        raise MagbayError(
            f"{device.node} is not blank: {lost}; and it has no serial number to name it by",
            hint="If all on it may be lost, clear it with 'wipefs --all' first.",
        )
    if request.overwrite_serial != device.serial:
        given = f", not {request.overwrite_serial}" if request.overwrite_serial else ""
        raise MagbayError(
            f"{device.node} (serial {device.serial}{given}) is not blank: {lost}",
            hint="If all on it may be lost, add --overwrite-serial with exactly its serial number.",
        )
    # A copy of a magazine carries its UUIDs, too, but the magazine is the disk with the other serial number.
    mine = enrolled is not None and enrolled.serial in ("", printable(device.serial))
    return enrolled if mine else None


def _begin(request: Request, device: BlockDevice, unfinished: Preparation | None) -> Preparation:
    """Where to begin: at an earlier run's last record if the disk still has what was written by then."""
    fresh = Preparation(
        serial=device.serial,
        model=device.model,
        size=device.size,
        name=request.name,
        luks_uuid=str(uuid.uuid4()),
        filesystem_uuid=str(uuid.uuid4()),
        wipe=request.wipe,
    )
    if unfinished is None:
        return fresh
    # The names stay, so that what a killed run has left behind is known as ours.
    fresh = dataclasses.replace(
        fresh, luks_uuid=unfinished.luks_uuid, filesystem_uuid=unfinished.filesystem_uuid, when=unfinished.when
    )
    if request.restart_wipe or request.wipe is not Wipe.RANDOM or not unfinished.wiped.done:
        return fresh
    formatted = unfinished.phase is not Phase.WIPING
    holds = unfinished.wiped.holds(Path(device.node), header=formatted)
    if formatted and not holds and device.fs_uuid == unfinished.luks_uuid:
        holds = True  # the new file system stands where the samples were
    return dataclasses.replace(fresh, wiped=unfinished.wiped) if holds else fresh


def _notes(device: BlockDevice, state: Preparation, health: Health) -> tuple[str, ...]:
    bad = health.condition in (Condition.WORN, Condition.FAILING)
    told = (f"it is {health.condition.value}: {health.reason}",) if bad else ()
    return told + _remains(device, state)


def _remains(device: BlockDevice, state: Preparation) -> tuple[str, ...]:
    """What an operator should know of what is on the disk."""
    if state.wiped.done:
        return (f"an overwriting was interrupted at {state.wiped.done} of {device.size} bytes ({state.when})",)
    places = (0, 1 << 20, device.size // 2 & ~4095)
    if candidate.not_empty(Path(device.node), places):
        return (
            "it is not empty, though nothing on it is known: it may be a disk that was overwritten before, or one with "
            "an encryption that leaves no mark",
        )
    return ()


def execute(
    todo: Plan, config: Config, say: Callable[[str], None], advance: Callable[[int], None], stop: Callable[[], bool]
) -> Enrolment:
    """Carry out *todo* up to the enrolment; the volumes are created by the caller, who then calls `finished`.

    *say* is told each step, *advance* the bytes overwritten; *stop* is asked before each write and each step. Raises
    `MagbayError`: what failed and how to go on.
    """
    work = _Work(todo, config, say, stop)
    with only_one(config, todo.name), whole_disk(Path(todo.device.node)) as lock:
        work.lock = lock
        work.clear()
        work.make_key()
        work.wipe(advance)
        work.format()
        return work.enrol()


def finished(todo: Plan, config: Config) -> None:
    """Forget what was remembered: everything is done."""
    preparations.forget(config, todo.device)


@dataclass
class _Work:
    """One preparation under way. *lock* is the descriptor that holds the disk."""

    todo: Plan
    config: Config
    say: Callable[[str], None]
    stop: Callable[[], bool]
    lock: int = -1

    @property
    def node(self) -> Path:
        """The disk."""
        return Path(self.todo.device.node)

    @contextlib.contextmanager
    def step(self, text: str) -> Iterator[None]:
        """Say *text*; any failure then says how to go on."""
        if self.stop():
            raise WipeStopped(f"preparing {self.node} was stopped", hint="The same command goes on from there.")
        self.say(text)
        try:
            yield
        except MagbayError as error:
            error.hint = error.hint or _AGAIN
            raise
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise MagbayError(f"{text}: {where}{error.strerror}", hint=_AGAIN) from None

    def remember(self, phase: Phase, wiped: Wiped) -> None:
        """Keep how far we are."""
        state = dataclasses.replace(self.todo.state, phase=phase, wiped=wiped)
        self.todo = dataclasses.replace(self.todo, state=state)
        preparations.write(self.config, self.todo.device, state)

    def clear(self) -> None:
        """Take away what a killed run has left behind, then make sure that nobody has taken the disk meanwhile."""
        with self.step(f"locking {self.node}"):
            containers.clear(self.todo.state.mapping, trial.mount_point(self.config, self.todo.state))
            claimed = candidate.claimed(self.todo.device)
            if claimed:
                raise MagbayError(f"{self.node} is not touched: {claimed}")

    def make_key(self) -> None:
        """The key file, once."""
        with self.step("looking at the key file"), locked(preparations.folder(self.config) / "key.lock"):
            if keyfile.ensure(self.config.key_file):
                self.say(f"made the key file {self.config.key_file}: keep a copy of it, without it no disk opens")

    def wipe(self, advance: Callable[[int], None]) -> None:
        """Old signatures first, so that nothing else takes the disk for what it was."""
        state = self.todo.state
        device, size = self.todo.device, self.todo.device.size
        if state.wiped.done < size:
            with self.step(f"removing old signatures from {self.node}"):
                self.remember(Phase.WIPING, state.wiped)
                run(["wipefs", "--all", "--quiet", device.node], "removing old signatures", descriptors=[self.lock])
        if state.wipe is Wipe.DISCARD:
            with self.step(f"discarding all blocks of {self.node}"):
                discard(self.node)
        elif state.wipe is Wipe.RANDOM and state.wiped.done < size:
            with self.step(f"overwriting {self.node} with random data"):
                overwrite(
                    self.node,
                    size,
                    state.wiped,
                    record=lambda wiped: self.remember(Phase.WIPING, wiped),
                    advance=advance,
                    stop=self.stop,
                )

    def format(self) -> None:
        """Container, file system, test, header backup."""
        todo, config, locks = self.todo, self.config, [self.lock]
        state = todo.state
        with self.step("making the LUKS2 container"):
            self.remember(Phase.FORMATTING, state.wiped)
            containers.format_disk(self.node, state.luks_uuid, todo.name, config.key_file, todo.device.size, locks)
        place = trial.mount_point(config, state)
        with containers.opened(self.node, state.mapping, config.key_file, locks) as inner:
            with self.step(f"making the file system ({todo.filesystem.value})"):
                size = todo.device.size
                filesystems.make(todo.filesystem, inner, size, uuid=state.filesystem_uuid, name=todo.name, keep=locks)
            with self.step("testing it: write, lock, unlock, read back"):
                written = trial.furnish(inner, place, config, state)
        with self.step("reading it back"), containers.opened(self.node, state.mapping, config.key_file, locks) as inner:
            trial.compare(inner, place, written, self.node)
        with self.step("saving its LUKS header"):
            key = keyfile.read(config.key_file)
            rotation.settle_disk(self.node, state.luks_uuid, key, _KEY_SLOT, config.state_dir)

    def enrol(self) -> Enrolment:
        """The enrolment, last: from here on the disk is ours."""
        state, device = self.todo.state, self.todo.device
        enrolment = Enrolment(
            name=state.name,
            filesystem_uuid=state.filesystem_uuid,
            luks_uuid=state.luks_uuid,
            serial=printable(device.serial),
            model=printable(device.model),
            size=device.size,
            prepared=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        )
        with self.step("enrolling it"):
            replaces = self.todo.replaces
            enrol(self.config, enrolment, replaces=replaces.filesystem_uuid if replaces else "")
            self.remember(Phase.ENROLLED, state.wiped)
        return enrolment


def tell_udev(todo: Plan) -> None:
    """Have udev look at the disk, now that nobody holds it. Raises `MagbayError`."""
    run(["udevadm", "trigger", "--action=change", "--settle", todo.device.node], "telling udev", hint=_AGAIN)


def _check_owner(config: Config) -> None:
    """Refuse before anything is wiped what would fail at the end."""
    try:
        pwd.getpwnam(config.prepare.owner)
        grp.getgrnam(config.prepare.group)
    except KeyError:
        raise MagbayError(
            f"there is no user {config.prepare.owner} or no group {config.prepare.group}: nothing was done",
            hint="Set prepare.owner and prepare.group in the configuration to who shall own the volumes.",
        ) from None
