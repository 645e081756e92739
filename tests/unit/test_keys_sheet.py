"""The recovery sheet: what is on it opens the disks, on paper and back, by hand and by camera."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from appliance.cli.main import main
from appliance.config.schema import Config, Enrolment
from appliance.errors import MagbayError
from appliance.keys import keyfile, printable, records, sheet
from appliance.keys.records import Record
from appliance.keys.secret import Secret
from appliance.keys.sheet import Entry, Sheet
from appliance.keys.sheet_pdf import pdf
from appliance.magazines.prepare import enrol


def _sheet(key: Secret, magazines: int = 1, *, with_key: bool = True) -> Sheet:
    one = {"serial": "S1", "model": "WD", "size": 10**12, "luks_uuid": "u" * 36, "filesystem_uuid": "f" * 36}
    entries = tuple(
        Entry(name=f"m{n}", slots={0: "key file", 1: "recovery key"}, seen="2026-11-24", **one)  # type: ignore[arg-type]
        for n in range(magazines)
    )
    path = Path("/etc/magbay/keys/magbay.key")
    return Sheet("box", "2026-11-24T10:00:00Z", path, key.fingerprint(), "", entries, key if with_key else None)


def test_typed_and_scanned_keys_are_the_key() -> None:
    key = keyfile.generate()
    typed, scanned = printable.lines(key), printable.codes(key)
    assert len(typed) == 164 and len(scanned) == 6
    assert printable.parse("\n".join(typed)) == printable.parse("\n".join(reversed(scanned))) == key
    sloppy = [line.lower().replace("o", "0").replace("i", "1").replace("=", "") for line in reversed(typed)]
    assert printable.parse("RECOVERY SHEET\nPage 1 of 2\n" + "\n".join(sloppy), key.fingerprint().upper()) == key


def _other(letter: str) -> str:
    return "B" if letter == "A" else "A"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda rows: rows[:-1], "4075 bytes of 4096"),
        (lambda rows: rows[:4] + rows[5:], "line 5 is missing"),
        (lambda rows: [*rows[:4], rows[4][:4] + _other(rows[4][4]) + rows[4][5:], *rows[5:]], "line 5 is mistyped"),
        (lambda rows: [*rows[:4], "005" + rows[5][3:], *rows[5:]], "line 5 is mistyped"),
        (lambda rows: [], "no key is written"),
        (lambda rows: rows + printable.codes(Secret(bytes(9))), "both lines and QR codes"),
    ],
)
def test_what_is_wrong_is_named(spoil: Any, words: str) -> None:
    with pytest.raises(MagbayError, match=words) as caught:
        printable.parse("\n".join(spoil(printable.lines(keyfile.generate()))))
    assert caught.value.hint


def test_codes_that_do_not_belong_together() -> None:
    one, other = printable.codes(keyfile.generate()), printable.codes(keyfile.generate())
    with pytest.raises(MagbayError, match="QR code 6 is of another key"):
        printable.parse("\n".join([*one[:5], other[5]]))
    with pytest.raises(MagbayError, match="QR code 2 is missing"):
        printable.parse("\n".join(one[:1] + one[2:]))
    with pytest.raises(MagbayError, match="fingerprint"):
        printable.parse("\n".join(one), "0" * 16)


@pytest.mark.shows_key
def test_the_commands_on_the_sheet_give_the_key_back(tmp_path: Path) -> None:
    key = keyfile.generate()
    text = sheet.text(_sheet(key))
    (tmp_path / "lines").write_text("\n".join(printable.lines(key)) + "\n")
    (tmp_path / "codes").write_text("\n".join(printable.codes(key)) + "\n")
    found = [row.strip() for row in text.splitlines() if row.strip().endswith("> KEYFILE")]
    assert len(found) == 2
    for command in found:
        subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True)
        assert (tmp_path / "KEYFILE").read_bytes() == key.reveal()
        told = subprocess.run(["sha256sum", "KEYFILE"], cwd=tmp_path, capture_output=True, text=True).stdout
        assert told.startswith(key.fingerprint()) and key.fingerprint() in text


def test_pdf_is_read_back_by_text_and_by_camera() -> None:
    pdfium = pytest.importorskip("pypdfium2")
    zxing = pytest.importorskip("zxingcpp")
    key = Secret(os.urandom(1200))  # two codes; six take seconds
    document = pdfium.PdfDocument(pdf(_sheet(key, magazines=12)))
    pages = list(document)
    text = "\n".join(page.get_textpage().get_text_range() for page in pages)
    text = "\n".join(" ".join(row.split()) for row in text.splitlines())
    for row in sheet.text(_sheet(key, magazines=12)).splitlines():
        assert " ".join(row.split()) in text
    assert printable.parse(text, key.fingerprint()) == key
    codes = [found.text for page in pages for found in zxing.read_barcodes(page.render(scale=2).to_pil())]
    assert len(codes) == 2 and printable.parse("\n".join(codes)) == key
    width = max(len(row) for row in sheet.text(_sheet(key, with_key=False)).splitlines())
    assert width * 5.4 + 2 * 42 <= 595, "a row would leave the page"


def test_without_reportlab_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("reportlab", "reportlab.lib.pagesizes", "reportlab.pdfgen.canvas"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MagbayError, match="reportlab, which is not installed") as caught:
        pdf(_sheet(keyfile.generate()))
    assert "python3-reportlab" in caught.value.hint and "--text" in caught.value.hint


def _magbay(config: Config, *words: str) -> int:
    return main(["--config", str(config.state_dir.parent / "magbay.yaml"), "key", *words])


@pytest.fixture
def enrolled(config: Config) -> Config:
    keyfile.ensure(config.key_file)
    config.state_dir.mkdir()
    enrol(config, Enrolment("d1", "0f0f", "abcd", serial="S1"))
    enrol(config, Enrolment("d2", "1f1f", "bcde", serial="S2"))
    records.write(config.state_dir, "abcd", Record("00", "2026-11-24T10:00:00Z", {0: "key file", 3: "TPM2"}))
    return config


def test_a_sheet_without_the_key(enrolled: Config, capsys: pytest.CaptureFixture[str]) -> None:
    assert _magbay(enrolled, "sheet") == 0
    text = capsys.readouterr().out
    for part in ("d1", "S1", "abcd", "0f0f", "0 key file, 3 TPM2", "d2", "not seen", "cryptsetup open", "bextract"):
        assert part in text
    assert keyfile.read(enrolled.key_file).fingerprint() in text and "THE KEY" not in text


@pytest.mark.shows_key
def test_a_sheet_with_the_key_and_back(enrolled: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = keyfile.read(enrolled.key_file)
    assert _magbay(enrolled, "sheet", "--with-key") == 2, "nobody can be asked"
    assert "--yes" in capsys.readouterr().err
    file = tmp_path / "out" / "sheet.txt"
    file.parent.mkdir()
    if os.geteuid() == 0:
        os.chown(file.parent, 12345, 12345)  # somebody's directory: the key does not become his
    assert _magbay(enrolled, "sheet", "--with-key", "--yes", "--text", str(file), "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"fingerprint": key.fingerprint(), "files": [str(file)]}
    assert file.stat().st_mode & 0o777 == 0o600 and file.stat().st_uid == os.geteuid()
    assert _magbay(enrolled, "restore", str(file)) == 1
    assert "it is this one" in capsys.readouterr().err
    kept = enrolled.key_file.rename(tmp_path / "kept")
    assert _magbay(enrolled, "restore", str(file), "--fingerprint", "0" * 16) == 1
    assert _magbay(enrolled, "restore", str(file)) == 0
    assert keyfile.read(enrolled.key_file) == key and enrolled.key_file.stat().st_mode & 0o777 == 0o400
    enrolled.key_file.unlink()
    assert _magbay(enrolled, "restore", str(kept)) == 0 and keyfile.read(enrolled.key_file) == key
    enrolled.key_file.unlink()
    (tmp_path / "junk").write_bytes(b"\xff" * 100)
    assert _magbay(enrolled, "restore", str(tmp_path / "junk")) == 1
    assert "this is no key" in capsys.readouterr().err and not enrolled.key_file.exists()
    assert _magbay(enrolled, "restore", str(kept), "--previous") == 0
    assert keyfile.previous(enrolled.key_file).exists()
