"""The strict configuration: what is good, and each way of being bad with file, line and key."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.config import document
from appliance.config.filesets import Signature
from appliance.config.kinds import Record, Where
from appliance.config.loader import load
from appliance.config.schema import Config
from appliance.errors import ConfigError


def write(tmp_path: Path, text: str | bytes) -> Path:
    file = tmp_path / "magbay.yaml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


def test_smallest_configuration(config: Config, tmp_path: Path) -> None:
    assert config.state_dir == tmp_path / "state"
    assert [m.directory for m in config.magazines] == [tmp_path / "m1", tmp_path / "m2"]
    assert config.pools["Default"].maximum_volume_bytes == 10_000_000_000
    assert config.pools["Default"].signature is Signature.MD5


def test_empty_file_gives_defaults(tmp_path: Path) -> None:
    assert load(write(tmp_path, "")).state_dir == Path("/var/lib/magbay")


def test_shipped_configuration_is_good() -> None:
    assert load(Path(__file__).parents[2] / "systemd" / "magbay.yaml").changer.drives == 2


def test_example_is_valid_and_names_every_key(tmp_path: Path) -> None:
    text = document.example()
    load(write(tmp_path, text))
    for key in Record(Config).schema()["properties"]:
        assert f"{key}:" in text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("pools: {P: {compression: LZ4}}\n", "It belongs to filesets.NAME or filesets.NAME.options[]."),
        ("drives: 2\n", "It belongs to changer."),
        ("changer: {state_dir: x}\n", "It belongs to the top level."),
        ("drivers: 2\n", "."),
        ("name: x\n", "It belongs to changer or magazines[]."),
    ],
)
def test_a_key_in_the_wrong_place_is_told_where_it_belongs(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, text))
    known, _dot, rest = caught.value.hint.partition(". ")
    assert known.startswith("Known here: ") and (rest or ".") == words


def test_scalars_are_text(tmp_path: Path) -> None:
    text = "magazines:\n  - {name: NO, directory: 22:22}\n  - {name: 0644, directory: ~}\n"
    config = load(write(tmp_path, text))
    assert [m.name for m in config.magazines] == ["NO", "0644"]
    assert config.magazines[0].directory.name == "22:22"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("statedir: x\n", 1, "unknown key"),
        ("changer: {name: c0, drivers: 2}\n", 1, "unknown key"),
        ("run_dir: a\nstate_dir: b\nrun_dir: c\n", 3, "given twice (first in line 1)"),
        ("changer:\n  drives: 2\n  drives: 3\n", 3, "given twice (first in line 2)"),
        ("changer: {drives: many}\n", 1, "whole number from 1 to 99"),
        ("changer: {drives: 0}\n", 1, "whole number from 1 to 99"),
        ("changer: {slots: 40000}\n", 1, "32767"),
        ("pools: {P: {maximum_volume_bytes: 10 apples}}\n", 1, "a size such as"),
        ("pools: {P: {signature: CRC}}\n", 1, "one of MD5"),
        ("magazines:\n  - {name: m1}\n", 2, "directory: is missing"),
        ("magazines:\n  - {name: ../x, directory: d}\n", 2, "a name"),
        ("magazines: {name: m1}\n", 1, "wants a list"),
        ("magazines:\n  - {name: m, directory: a}\n  - {name: m, directory: b}\n", 1, "two magazines are called m"),
        ("jobs: {j: {paths: [/etc], pool: Nope}}\n", 1, "names the pool Nope"),
        ("jobs: {j: {paths: []}}\n", 1, "at least one"),
        ("state_dir: ~no-such-user/state\n", 1, "not known here"),
        ("pools: {P: {maximum_volume_bytes: " + "9" * 400 + "}}\n", 1, "a size that a file can have"),
        ("- a\n", 1, "wants a mapping"),
        ("a: &x 1\nb: *x\n", 1, "anchors and aliases"),
        ("a: " + "[" * 40 + "]" * 40 + "\n", 1, "deep"),
        ("a: b: c\n", 1, "not valid YAML"),
        ("a: [1\n", 2, "not valid YAML"),
    ],
)
def test_errors_name_file_and_line(tmp_path: Path, text: str, line: int, words: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert f"{file}:{line}:" in caught.value.message
    assert words in caught.value.message
    assert caught.value.hint


def test_missing_and_unreadable(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load(tmp_path / "nope.yaml")
    with pytest.raises(ConfigError, match="directory"):
        load(tmp_path)


@settings(deadline=None)  # a machine with other work is no defect
@given(st.binary(max_size=300))
def test_any_bytes_give_a_declared_error_or_a_configuration(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    file = write(tmp_path_factory.mktemp("c"), data)
    try:
        assert isinstance(load(file), Config)
    except ConfigError as error:
        assert str(file) in error.message


def test_fragments_add_and_never_override(tmp_path: Path) -> None:
    file = write(tmp_path, "run_dir: r\nmagazines:\n  - {name: a, directory: a}\npools: {P: {}}\n")
    folder = tmp_path / "magbay.d"
    folder.mkdir()
    (folder / "1.yaml").write_text("magazines:\n  - {name: b, directory: b}\npools: {Q: {}}\n")
    config = load(file)
    assert [m.name for m in config.magazines] == ["a", "b"]
    assert sorted(config.pools) == ["P", "Q"]
    (folder / "2.yaml").write_text("run_dir: other\n")
    with pytest.raises(ConfigError, match=r"2\.yaml:1: run_dir: is set in another file"):
        load(file)
    (folder / "2.yaml").write_text("pools: {Q: {}}\n")
    with pytest.raises(ConfigError, match="given twice"):
        load(file)


def test_where_without_node_names_the_file(tmp_path: Path) -> None:
    assert str(tmp_path) in Where(tmp_path, "k").error(None, "text").message


def test_a_file_without_end_or_a_directory_is_no_configuration(tmp_path: Path) -> None:
    for path, words in ((Path("/dev/zero"), "larger than"), (tmp_path, "Is a directory")):
        with pytest.raises(ConfigError, match=words):
            load(path)
