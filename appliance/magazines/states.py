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
    CHECKING = "checking"
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
    CHECK = "check the file system"
    MOUNT = "mount"
    EJECT = "unmount, close, flush, power down"
    REARM = "forget an older eject"
    LOCK = "lock"


# Which states may follow which when facts change; the property test walks random worlds along it.
# Every state may become GONE (pulled), FAILED, or FOREIGN (forgotten by `magbay magazine forget`).
_OPENING = frozenset({State.LOCKED, State.UNLOCKING, State.CHECKING, State.UNLOCKED, State.MOUNTED, State.IDLE})
_LEAVING = frozenset({State.EJECTING, State.SAFE})
FOLLOWS: dict[State, frozenset[State]] = {
    State.FOREIGN: _OPENING - {State.IDLE},
    State.LOCKED: (_OPENING | _LEAVING) - {State.IDLE},
    State.UNLOCKING: (_OPENING | _LEAVING) - {State.IDLE},
    State.CHECKING: _OPENING | _LEAVING,
    State.UNLOCKED: (_OPENING | _LEAVING) - {State.IDLE},
    State.MOUNTED: _OPENING | _LEAVING,
    State.IDLE: _OPENING | _LEAVING,
    # Back to the others when the eject is called off.
    State.EJECTING: _OPENING | _LEAVING,
    State.SAFE: _OPENING | _LEAVING,
    State.GONE: frozenset(State),
    State.FAILED: frozenset(State),
}
ALWAYS = frozenset({State.GONE, State.FAILED, State.FOREIGN})

# ActiveState of a unit that is on its way somewhere.
_MOVING = ("activating", "deactivating")

# Exit statuses of cryptsetup(8), of open-container (6 to 8) and of systemd (systemd.exec(5)), in words for an operator.
_UNLOCK_REASONS = {
    1: ("cryptsetup refused its parameters", "See 'journalctl -u {unit}'."),
    2: ("the key file does not open this disk", "Restore the key that was in use when it was prepared, then replug."),
    3: ("not enough memory to unlock", "Free memory, then replug the disk."),
    4: ("the LUKS header cannot be read", "Replug the disk; if that does not help, restore the header backup."),
    5: ("the mapping is busy", "Something still holds an older mapping; replug once it has ended."),
    6: ("another disk with the same LUKS UUID came in that moment", "Pull one of the two disks, replug the other."),
    7: (
        "the key file is missing or does not open it, and the TPM of this machine does not either",
        "Put the key file back. A TPM opens nothing after a change of firmware or Secure Boot, nor on another machine: "
        "then 'magbay key remove' its slot and 'magbay key add --tpm2' anew.",
    ),
    8: (
        "the key file is missing or does not open it, and the Tang server does not answer",
        "It is tried again by itself; or put the key file back.",
    ),
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
    unlock_due: bool = False  # after a failure that may pass by itself it is time to unlock again
    inner: bool = False  # the mapping is there and udev has looked into it
    inner_matches: bool = False  # it holds the file system that was enrolled
    checked: bool = False  # its file system was checked since the container was opened
    check: str = "inactive"  # ActiveState of the check unit
    check_result: str = "success"
    check_due: bool = True  # it is time for the next try to check
    mounted: bool = False
    was_mounted: bool = False  # mounted at least once since unlocking
    mount_error: str = ""  # the last tries to mount failed, often enough to say so
    mount_due: bool = True  # it is time for the next try to mount
    read_only: str = ""  # why nothing may be written on it
    eject: bool = False  # somebody asked for it since this disk was plugged
    eject_unit: str = "inactive"  # ActiveState of the eject unit; active: unmounted, closed, flushed, powered down
    eject_due: bool = True  # it is time for the next try to eject


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
        # The unlock unit may still call itself active: the eject unit has closed what it had opened.
        open_still = facts.inner or facts.mounted or facts.unit == "activating"
        done = facts.eject_unit == "active" and not open_still
        return Verdict(State.SAFE if done else State.EJECTING)
    if facts.mounted:
        return _usable(State.MOUNTED, facts)
    if facts.inner:
        return _opened(facts)
    if facts.unit == "failed" and facts.attempted:
        return _unlock_failed(facts)
    if facts.unit in ("activating", "active"):
        return Verdict(State.UNLOCKING)
    return Verdict(State.LOCKED)


def _usable(state: State, facts: Facts) -> Verdict:
    if facts.read_only:
        return Verdict(state, f"read-only: {facts.read_only}", "Restores work. See 'Read-only magazines' in media.md.")
    return Verdict(state, "not in use: safe to pull" if state is State.IDLE else "")


def _opened(facts: Facts) -> Verdict:
    if not facts.inner_matches:
        return Verdict(
            State.FAILED,
            "the container opens, but does not hold the file system that was enrolled",
            "If it was formatted anew on purpose, 'magbay magazine forget' it and prepare it again.",
        )
    if not facts.checked and facts.check == "failed":
        return Verdict(
            State.FAILED,
            "its file system could not be checked" + (": it took too long" if facts.check_result == "timeout" else ""),
            "It is tried again by itself. See 'journalctl -u magbay-check@*'.",
        )
    if not facts.checked:
        return Verdict(State.CHECKING)
    if facts.mount_error:
        return Verdict(
            State.FAILED,
            f"cannot be mounted: {facts.mount_error}",
            "It is tried again by itself. See 'journalctl -u autofs -u magbay-check@*'.",
        )
    return _usable(State.IDLE, facts) if facts.was_mounted else Verdict(State.UNLOCKED)


def unlock_may_pass(result: str, status: int) -> bool:
    """Whether a failure of the unlock unit may pass by itself: anything but a key that does not fit."""
    return result != "exit-code" or status != 2


def _unlock_failed(facts: Facts) -> Verdict:
    if facts.unit_result == "timeout":
        return Verdict(State.FAILED, "unlocking took too long", "Replug the disk; check its cable.")
    reason, hint = _UNLOCK_REASONS.get(
        facts.unit_status, (f"unlocking failed (status {facts.unit_status})", "See 'journalctl -u {unit}'.")
    )
    return Verdict(State.FAILED, reason, hint.format(unit="'magbay-unlock@*'"))


def next_step(state: State, facts: Facts) -> Step:
    """The one step that leads on from *state*."""
    if not facts.enrolled or (facts.refusal and not facts.eject):
        return Step.NONE
    if facts.eject_unit == "active" and (not facts.eject or facts.inner or facts.mounted):
        return Step.REARM
    if facts.eject_unit == "activating" and not facts.eject:
        return Step.REARM  # it was called off while somebody still held the magazine
    if state is State.EJECTING:
        return _leave(facts)
    if state is State.SAFE:
        return Step.LOCK if facts.unit == "active" else Step.NONE
    if state is State.LOCKED:
        return Step.NONE if facts.unit == "deactivating" or facts.eject_unit in _MOVING else Step.UNLOCK
    if state is State.CHECKING:
        # While it is being opened, the unit may still see by itself that the file system is clean.
        return Step.CHECK if facts.check == "inactive" and facts.unit not in _MOVING else Step.NONE
    if state is State.UNLOCKED:
        return Step.MOUNT if facts.mount_due else Step.NONE
    if state is State.FAILED:
        return _again(facts)
    return Step.NONE


def _leave(facts: Facts) -> Step:
    if facts.eject_unit in _MOVING or facts.check in _MOVING or facts.unit == "deactivating":
        return Step.NONE
    if not facts.inner and not facts.mounted and facts.unit == "activating":
        return Step.LOCK
    return Step.EJECT if facts.eject_unit != "active" and facts.eject_due else Step.NONE


def _again(facts: Facts) -> Step:
    """What failed is tried anew when it is time."""
    if facts.inner:
        if not facts.inner_matches:
            return Step.NONE
        if not facts.checked and facts.check == "failed":
            return Step.CHECK if facts.check_due else Step.NONE
        return Step.MOUNT if facts.mount_due else Step.NONE
    return Step.UNLOCK if facts.unit == "failed" and facts.unlock_due else Step.NONE
