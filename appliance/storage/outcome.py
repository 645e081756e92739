"""What became of the files of an extraction."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from appliance.errors import ExitStatus

_MAX_MESSAGES = 10_000  # kept of each kind; the counts go on


class Replace(Enum):
    """What happens to a file that is there already; the words are Bacula's, with or without the hyphen."""

    ALWAYS = "always"
    IF_NEWER = "if-newer"  # replaced when the saved one is newer
    IF_OLDER = "if-older"  # replaced when the saved one is older
    NEVER = "never"

    @classmethod
    def parse(cls, text: str) -> Replace:
        """From a word. Raises `ValueError`."""
        return cls(text.replace("-", "").replace("if", "if-"))

    def keeps(self, saved: int, found: int) -> bool:
        """Whether what is there stays, by the mtime that was *saved* and that which is *found* (Unix seconds)."""
        if self is Replace.IF_NEWER:
            return saved <= found
        if self is Replace.IF_OLDER:
            return saved >= found
        return self is Replace.NEVER


class Outcome(Enum):
    """What became of one file."""

    RESTORED = "restored"
    SKIPPED = "skipped"
    WARNED = "restored, with a warning"
    FAILED = "failed"


@dataclass(frozen=True)
class FileResult:
    """*path* as on the volume; *message* empty when all is well."""

    path: str
    outcome: Outcome
    message: str = ""


@dataclass
class Summary:
    """Counts of an extraction; *bytes* written as data. *warnings* and *errors* name the file first."""

    files: int = 0
    bytes: int = 0
    skipped: int = 0
    unverified: int = 0  # files with a digest of a kind that is not computed
    failed: int = 0
    warned: int = 0
    warnings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def warn(self, text: str) -> None:
        """Count a warning."""
        self.warned += 1
        if self.warned <= _MAX_MESSAGES:
            self.warnings.append(text)

    def fail(self, text: str) -> None:
        """Count an error."""
        self.failed += 1
        if self.failed <= _MAX_MESSAGES:
            self.errors.append(text)

    def add(self, other: Summary) -> None:
        """Count what another one has."""
        for name in ("files", "bytes", "skipped", "unverified", "failed", "warned"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.warnings = (self.warnings + other.warnings)[:_MAX_MESSAGES]
        self.errors = (self.errors + other.errors)[:_MAX_MESSAGES]

    @property
    def status(self) -> ExitStatus:
        """1 with errors, 3 with warnings, else 0."""
        if self.failed:
            return ExitStatus.FAILED
        return ExitStatus.WARNINGS if self.warned else ExitStatus.DONE
