"""Configuration files of vchanger 1.0 and 0.8, read as if they were ours.

Both are lines of `keyword = value`; keywords are taken in either spelling (`Log Level`, `log_level`). What differs is
the model: 0.8 has fixed slots per bay and puts drive N at `WORK_DIR/N/driveN`, 1.0 gives slots as volumes come and puts
it at `WORK_DIR/N`. Relative paths start at the working directory, as with vchanger.
Source: reference changer.md, 2.1 (1.0.3) and 2.12 (0.8.6).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from appliance.config.kinds import NAME, UUID
from appliance.config.schema import (
    MOST_SLOTS,
    ChangerConfig,
    Config,
    DirectorConfig,
    DirectorKind,
    MagazineConfig,
)
from appliance.errors import ConfigError

# A line that begins so cannot be the beginning of a YAML mapping: a plain key would swallow the `=` and want a colon.
_LOOKS = re.compile(rb"\s*(\[|[A-Za-z][A-Za-z_ \t]*=)")
_SKIPPED = re.compile(rb"\s*([#;].*)?")
_SECTION = re.compile(r"\[\s*global\s*\]\s*([#;].*)?", re.IGNORECASE)
_ESCAPE = re.compile(r"\\(x[0-9A-Fa-f]{2}|.)")
_BAY = re.compile(r"(.*),(\d{1,9}),(\d{1,9})\s*")  # MAGAZINE,COUNT,FIRST SLOT
_ESCAPES = {"0": "\0", "n": "\n", "r": "\r", "t": "\t"}
_MOST_BYTES = 1_000_000
# Drives that 1.0 accepts without being told their number; ours has an upper bound.
_DRIVES = 99
# The number of slots of 1.0 follows the volumes; a Director wants a fixed one.
_STEP = 1000

_CHANGER_KEYS = (
    "name",
    "drives",
    "slots",
    "drive_dir",
    "drive_folders",
    "drives_listed",
    "numbered",
    "unlabelled",
    "vchanger_disks",
)
_DIRECTOR_KEYS = ("kind", "console_config", "console_program", "storage", "pool")
_MAGAZINE_KEYS = ("name", "directory", "filesystem_uuid", "create", "slots")

# Keyword without blanks and underscores, small letters: whether it belongs to 0.8 only.
_KEYWORDS = {
    "storageresource": False,
    "magazine": False,
    "workdir": False,
    "logfile": False,
    "loglevel": False,
    "user": False,
    "group": False,
    "bconsole": False,
    "bconsoleconfig": False,
    "defaultpool": False,
    "changername": True,
    "statedir": True,
    "virtualdrives": True,
    "slotspermagazine": True,
    "magazinebays": True,
    "automountdir": True,
}
_ALIASES = {"changername": "storageresource", "statedir": "workdir"}
# Keyword to what it may be: least, most (reference 2.12).
_NUMBERS = {"virtualdrives": (1, 99), "slotspermagazine": (1, 9999), "magazinebays": (1, 32)}
_MAY_BE_EMPTY = frozenset({"bconsole", "bconsoleconfig", "logfile"})
_DEFAULT_WORK_DIR = {True: "/var/lib/bacula/{}", False: "/var/spool/vchanger/{}"}


@dataclass(frozen=True)
class VchangerFile:
    """What such a file says. *old*: it is one of 0.8. *magazines*: paths, or `UUID:` and the UUID, in order of bays."""

    path: Path
    old: bool
    name: str
    work_dir: Path
    magazines: tuple[str, ...]
    logfile: Path | None = None
    user: str = ""
    group: str = ""
    default_pool: str = "Scratch"
    drives: int = 0  # 0: not told
    slots_per_magazine: int = 10
    bays: int = 1
    automount_dir: Path | None = None
    settings: dict[str, str] = field(default_factory=dict)

    def config(self) -> Config:
        """The same as a configuration of ours. Raises `ConfigError`."""
        magazines = tuple(self._magazine(index, names) for index, names in enumerate(self._names()))
        changer = ChangerConfig(
            name=self.name,
            drives=self.drives or (1 if self.old else _DRIVES),
            slots=self._slots(),
            drive_dir=self.work_dir,
            drive_folders=self.old,
            drives_listed=0 if self.old or self.drives else 1,
            numbered=self.old,
            unlabelled=True,
            vchanger_disks=True,
        )
        try:
            return Config(
                state_dir=self.work_dir,
                run_dir=self.work_dir,
                changer=changer,
                magazines=magazines,
                director=self._director(),
            )
        except ValueError as error:
            raise ConfigError(f"{self.path}: {error}", hint="Correct the file.") from None

    @property
    def logs_errors(self) -> bool:
        """Whether errors belong into *logfile*: numbers and names are those of syslog(3), the default is 3."""
        return self.settings.get("loglevel", "").upper() not in ("0", "1", "2", "LOG_EMERG", "LOG_ALERT", "LOG_CRIT")

    def yaml(self) -> str:
        """The same as text of our configuration."""
        config = self.config()
        changer, director = config.changer, config.director
        lines = [
            f"# Made of {self.path}, a configuration of vchanger {'0.8' if self.old else '1.0'}.",
            "# State, drives and all names stay what they were: only the Changer Device has to name this file.",
            f"state_dir: {_quoted(config.state_dir)}",
            f"run_dir: {_quoted(config.run_dir)}",
            "changer:",
            *(f"  {key}: {_quoted(getattr(changer, key))}" for key in _CHANGER_KEYS),
            "director:",
            *(f"  {key}: {_quoted(getattr(director, key))}" for key in _DIRECTOR_KEYS),
            "magazines:",
        ]
        for magazine in config.magazines:
            pairs = [(key, _quoted(getattr(magazine, key))) for key in _MAGAZINE_KEYS if getattr(magazine, key) != ""]
            lines += [f"  {'-' if not index else ' '} {key}: {value}" for index, (key, value) in enumerate(pairs)]
        return "\n".join(lines) + "\n"

    def _director(self) -> DirectorConfig:
        told = self.settings.get("bconsole") or self.settings.get("bconsoleconfig")
        return DirectorConfig(
            kind=DirectorKind.BACULA if told and self.settings.get("bconsole") != "" else DirectorKind.NONE,
            console_config=Path(self.settings.get("bconsoleconfig") or "/etc/bacula/bconsole.conf"),
            console_program=self.settings.get("bconsole") or "bconsole",
            storage=self.name,
            pool=self.default_pool,
        )

    def files(self) -> tuple[Path, ...]:
        """The files besides *path* that `config` rests on: where vchanger 1.0 put the magazines the last time."""
        return () if self.old else tuple(self.work_dir / f"bay_state-{bay}" for bay in range(len(self.magazines)))

    def _names(self) -> list[tuple[str, str]]:
        """For each magazine what the file says and a name: of its directory if that will do, else made of the path."""
        found: list[tuple[str, str]] = []
        for text in self.magazines:
            tail = text[5:].lower() if is_uuid(text) else Path(text).name
            legal = NAME.pattern is not None and NAME.pattern.fullmatch(tail)
            name = tail if legal else re.sub(r"[^A-Za-z0-9_.-]", "_", text.strip("/")) or "root"
            if name in (other for _text, other in found):
                name = re.sub(r"[^A-Za-z0-9_.-]", "_", text.strip("/"))
            found.append((text, name.lstrip(".-")[-127:] or "magazine"))
        return found

    def _magazine(self, index: int, names: tuple[str, str]) -> MagazineConfig:
        text, name = names
        slots = self._range(index)
        if not is_uuid(text):
            return MagazineConfig(name, _absolute(text), create=False, slots=slots)
        base = self.automount_dir or Config().mount_dir
        return MagazineConfig(name, base / text[5:], text[5:].lower(), create=False, slots=slots)

    def _range(self, index: int) -> str:
        if self.old:
            first, count = index * self.slots_per_magazine + 1, self.slots_per_magazine
        else:
            first, count = self._last_place(index)
        taken = count > 0 and first + count - 1 <= MOST_SLOTS
        return f"{first}-{first + count - 1}" if taken else ""

    def _last_place(self, index: int) -> tuple[int, int]:
        """First slot and number of volumes that vchanger 1.0 gave to magazine *index*; 0, 0 when that is not known or
        would contradict another magazine."""
        places = [self._bay_state(bay) for bay in range(len(self.magazines))]
        first, count = places[index]
        for other, (start, length) in enumerate(places):
            if other < index and start < first + count and first < start + length:
                return 0, 0
        return first, count

    def _bay_state(self, bay: int) -> tuple[int, int]:
        try:
            text = (self.work_dir / f"bay_state-{bay}").read_text(errors="replace")
        except OSError:
            return 0, 0
        match = _BAY.fullmatch(text)
        if match is None or match[1].lower() != self.magazines[bay].lower() or int(match[3]) < 1:
            return 0, 0
        return int(match[3]), int(match[2])

    def _slots(self) -> int:
        if self.old:
            return min(MOST_SLOTS, max(self.bays, len(self.magazines)) * self.slots_per_magazine)
        ends = [first + count for first, count in map(self._last_place, range(len(self.magazines)))]
        need = max([_highest_slot(self.work_dir), sum(map(_entries, self.magazines)), *ends])
        return min(MOST_SLOTS, max(1, -(-need // _STEP)) * _STEP)


def is_uuid(magazine: str) -> bool:
    """Whether the text of a magazine line names a UUID."""
    return magazine[:5].upper() == "UUID:"


def looks_so(data: bytes) -> bool:
    """Whether *data* begins like a file of vchanger, which no YAML mapping does."""
    line = next((line for line in data.splitlines() if not _SKIPPED.fullmatch(line)), b"")
    return _LOOKS.match(line) is not None


def read(path: Path) -> VchangerFile:
    """What the file *path* says. Raises `ConfigError` with file and line."""
    try:
        data = path.read_bytes()
    except PermissionError as error:
        raise ConfigError(f"{path}: {error.strerror}", hint="Run as a user who may read it.") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", hint="Name a configuration of vchanger.") from None
    return parse(data, path)


def parse(data: bytes, path: Path) -> VchangerFile:
    """What *data*, read from *path*, says. Raises `ConfigError` with file and line."""
    if len(data) > _MOST_BYTES:
        raise ConfigError(f"{path}: larger than {_MOST_BYTES} bytes", hint="This is no configuration.")
    lines = list(_assignments(data.decode("utf-8", "surrogateescape"), path))
    old = any(_KEYWORDS[key] for _line, key, _value, _quoted in lines)
    single: dict[str, str] = {}
    magazines = []
    for line, key, raw, quoted in lines:
        value = _ESCAPE.sub(_unescape, raw) if quoted and not old else raw
        if not (value or quoted or old or key == "magazine"):
            # To 1.0 nothing behind the = means that the keyword was not written; "" is an empty text.
            single.pop(_ALIASES.get(key, key), None)
            continue
        _check(key, value, path, line)
        if key == "magazine":
            magazines.append(value)
        else:
            single[_ALIASES.get(key, key)] = value  # the last one holds, as with vchanger
    if not magazines:
        raise ConfigError(f"{path}: no magazine is named", hint="Add lines 'magazine = PATH' or 'magazine = UUID:…'.")
    for magazine in magazines:
        if magazines.count(magazine) > 1:
            raise ConfigError(f"{path}: magazine {magazine} is named twice", hint="Remove one of the lines.")
    return _file(path, old, single, tuple(magazines))


def _file(path: Path, old: bool, single: dict[str, str], magazines: tuple[str, ...]) -> VchangerFile:
    name = single.get("storageresource", "vchanger")
    work_dir = _absolute(single.get("workdir", _DEFAULT_WORK_DIR[old].format(name)))
    logfile = single.get("logfile", "")
    automount = single.get("automountdir", "")
    base = work_dir if old else Path.cwd()
    return VchangerFile(
        path,
        old,
        name,
        work_dir,
        magazines,
        base / logfile if logfile else None,
        single.get("user", ""),
        single.get("group", ""),
        single.get("defaultpool", "Scratch"),
        int(single.get("virtualdrives", "0")),
        int(single.get("slotspermagazine", "10")),
        int(single.get("magazinebays", "1")),
        _absolute(automount) if automount else None,
        single,
    )


def _assignments(text: str, path: Path) -> Iterator[tuple[int, str, str, bool]]:
    """Line (from 1), keyword, value and whether it was quoted."""
    lines = text.replace("\r\n", "\n").split("\n")
    number = 0
    while number < len(lines):
        first, line = number + 1, lines[number]
        while line.endswith("\\") and number + 1 < len(lines):
            number += 1
            line = line[:-1] + lines[number]
        number += 1
        stripped = line.strip()
        if not stripped or stripped[0] in "#;" or _SECTION.fullmatch(stripped):
            continue
        word, equals, rest = stripped.partition("=")
        key = re.sub(r"[\s_]", "", word).lower()
        if not equals or key not in _KEYWORDS:
            what = f"unknown keyword {word.strip()!r}" if equals else f"wants KEYWORD = VALUE, got {stripped[:60]!r}"
            raise _error(path, first, what)
        yield (first, key, *_value(rest.strip(), path, first))


def _value(text: str, path: Path, line: int) -> tuple[str, bool]:
    """The value without quotes and comment; unquoted words are joined by one blank."""
    if text[:1] in ("'", '"'):
        match = re.fullmatch(rf"{text[0]}((?:\\.|[^\\{text[0]}])*){text[0]}\s*([#;].*)?", text)
        if match is None:
            raise _error(path, line, "quotes are not closed, or something follows them")
        return match[1], True
    words = []
    for word in text.split():
        if word[0] in "#;":
            break
        words.append(word)
    return " ".join(words), False


def _check(key: str, value: str, path: Path, line: int) -> None:
    if not value and key not in _MAY_BE_EMPTY:
        raise _error(path, line, f"{key} has no value")
    if "\0" in value or "\n" in value:
        raise _error(path, line, f"{key} has a character that no name has")
    if key in _NUMBERS:
        least, most = _NUMBERS[key]
        if not re.fullmatch(r"[0-9]{1,6}", value) or not least <= int(value) <= most:
            raise _error(path, line, f"{key} wants a whole number from {least} to {most}, got {value!r}")
    elif key == "magazine" and is_uuid(value):
        if UUID.pattern is None or not UUID.pattern.fullmatch(value[5:]):
            raise _error(path, line, f"magazine wants UUID: and {UUID.wanted}, got {value!r}")
    elif key in ("storageresource", "changername", "defaultpool") and (
        NAME.pattern is None or not NAME.pattern.fullmatch(value)
    ):
        raise _error(path, line, f"{key} wants {NAME.wanted}, got {value!r}")


def _quoted(value: object) -> str:
    """As a scalar of YAML, which takes the texts of JSON."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = str(value.value) if isinstance(value, Enum) else str(value)
    return text if re.fullmatch(r"[A-Za-z0-9_/][A-Za-z0-9_./-]*", text) else json.dumps(text)


def _error(path: Path, line: int, text: str) -> ConfigError:
    return ConfigError(f"{path}:{line}: {text}", hint="Correct the file (it is read as one of vchanger).")


def _unescape(match: re.Match[str]) -> str:
    code = match[1]
    return chr(int(code[1:], 16)) if len(code) == 3 else _ESCAPES.get(code, code)


def _absolute(text: str) -> Path:
    return Path.cwd() / text


def _highest_slot(work_dir: Path) -> int:
    """The highest slot in our slot map, by its text: the map itself belongs to the changer."""
    try:
        numbers = re.findall(r'": (\d{1,5})[,\n]', (work_dir / "slots.json").read_text(errors="replace"))
    except OSError:
        return 0
    return max(map(int, numbers), default=0)


def _entries(magazine: str) -> int:
    try:
        return 0 if is_uuid(magazine) else sum(1 for _entry in _absolute(magazine).iterdir())
    except OSError:
        return 0
