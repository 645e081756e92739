"""The states of a disk, as one small explicit machine.

`observe` says from the facts alone which state a disk is in; `next_step` which single step leads on. Neither
remembers anything: a lost or doubled event, or a restart of the agent, ends in the same state.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class State(Enum):
    """State of one disk."""

    FOREIGN = "foreign"
    LOCKED = "locked"
    UNLOCKING = "unlocking"
    UNLOCKED = "unlocked"
    MOUNTED = "mounted"
    IDLE = "idle"
    EJECTING = "ejecting"
    SAFE = "safe to remove"
    GONE = "gone"
    FAILED = "failed"


class Step(Enum):
    """What the media agent asks for next."""

    NONE = "none"
    UNLOCK = "unlock"
    MOUNT = "mount"
    UNMOUNT = "unmount"
    LOCK = "lock"


# Which states may follow which when facts change; the property test walks random worlds along it.
# Every state may become GONE (pulled), FAILED, or FOREIGN (forgotten by `magbay magazine forget`).
FOLLOWS: dict[State, frozenset[State]] = {
    State.FOREIGN: frozenset({State.LOCKED, State.UNLOCKING, State.UNLOCKED, State.MOUNTED}),
    State.LOCKED: frozenset({State.UNLOCKING, State.UNLOCKED, State.MOUNTED, State.EJECTING, State.SAFE}),
    State.UNLOCKING: frozenset({State.LOCKED, State.UNLOCKED, State.MOUNTED, State.EJECTING, State.SAFE}),
    State.UNLOCKED: frozenset({State.MOUNTED, State.LOCKED, State.UNLOCKING, State.EJECTING, State.SAFE}),
    State.MOUNTED: frozenset({State.IDLE, State.LOCKED, State.UNLOCKING, State.UNLOCKED, State.EJECTING, State.SAFE}),
    State.IDLE: frozenset({State.MOUNTED, State.LOCKED, State.UNLOCKING, State.UNLOCKED, State.EJECTING, State.SAFE}),
    State.EJECTING: frozenset({State.SAFE}),
    State.SAFE: frozenset({State.EJECTING}),
    State.GONE: frozenset(State),
    State.FAILED: frozenset(State),
}
ALWAYS = frozenset({State.GONE, State.FAILED, State.FOREIGN})

# Exit statuses of cryptsetup(8), of open-container (6) and of systemd (systemd.exec(5)), in words for an operator.
_UNLOCK_REASONS = {
    1: ("cryptsetup refused its parameters", "See 'journalctl -u {unit}'."),
    2: ("the key file does not open this disk", "Restore the key that was in use when it was prepared, then replug."),
    3: ("not enough memory to unlock", "Free memory, then replug the disk."),
    4: ("the LUKS header cannot be read", "Replug the disk; if that does not help, restore the header backup."),
    5: ("the mapping is busy", "Something still holds an older mapping; replug once it has ended."),
    6: ("another disk with the same LUKS UUID came in that moment", "Pull one of the two disks, replug the other."),
    243: ("the key file is missing or not readable", "Put the key file back, then replug the disk."),
}


@dataclass(frozen=True)
class Facts:
    """All that decides the state of one disk."""

    enrolled: bool
    refusal: str = ""  # why a disk that claims to be a magazine must not be used
    foreign: str = ""  # why it is none of ours
    unit: str = "inactive"  # ActiveState of the unlock unit
    unit_result: str = "success"
    unit_status: int = 0
    attempted: bool = False  # unlocking was tried since this disk was plugged
    inner: bool = False  # the mapping is there and udev has looked into it
    inner_matches: bool = False  # it holds the file system that was enrolled
    mounted: bool = False
    was_mounted: bool = False  # mounted at least once since unlocking
    mount_error: str = ""
    eject: bool = False  # somebody asked for it since this disk was plugged


@dataclass(frozen=True)
class Verdict:
    """State of a disk, the reason in words, and what a person can do about it."""

    state: State
    reason: str = ""
    hint: str = ""


def observe(facts: Facts) -> Verdict:
    """The state that *facts* mean."""
    if not facts.enrolled:
        return Verdict(State.FOREIGN, facts.foreign)
    if facts.refusal:
        return Verdict(State.FAILED, facts.refusal, "Pull one of the two disks.")
    if facts.eject:
        open_still = facts.inner or facts.mounted or facts.unit in ("active", "activating", "deactivating")
        return Verdict(State.EJECTING if open_still else State.SAFE)
    if facts.mounted:
        return Verdict(State.MOUNTED)
    if facts.inner:
        return _opened(facts)
    if facts.unit == "failed" and facts.attempted:
        return _unlock_failed(facts)
    if facts.unit in ("activating", "active"):
        return Verdict(State.UNLOCKING)
    return Verdict(State.LOCKED)


def _opened(facts: Facts) -> Verdict:
    if not facts.inner_matches:
        return Verdict(
            State.FAILED,
            "the container opens, but does not hold the file system that was enrolled",
            "If it was formatted anew on purpose, 'magbay magazine forget' it and prepare it again.",
        )
    if facts.mount_error:
        return Verdict(
            State.FAILED, f"cannot be mounted: {facts.mount_error}", "See 'journalctl -u autofs', then replug."
        )
    return Verdict(State.IDLE if facts.was_mounted else State.UNLOCKED)


def _unlock_failed(facts: Facts) -> Verdict:
    if facts.unit_result == "timeout":
        return Verdict(State.FAILED, "unlocking took too long", "Replug the disk; check its cable.")
    reason, hint = _UNLOCK_REASONS.get(
        facts.unit_status, (f"unlocking failed (status {facts.unit_status})", "See 'journalctl -u {unit}'.")
    )
    return Verdict(State.FAILED, reason, hint.format(unit="'magbay-unlock@*'"))


def next_step(state: State, facts: Facts) -> Step:
    """The one step that leads on from *state*."""
    if state is State.LOCKED and facts.unit != "deactivating":
        return Step.UNLOCK
    if state is State.UNLOCKED:
        return Step.MOUNT
    if state is State.EJECTING:
        if facts.mounted:
            return Step.UNMOUNT
        return Step.LOCK if facts.unit in ("active", "activating") else Step.NONE
    return Step.NONE
