"""What labels on volumes say is shown to people, and gives their terminals no orders."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from appliance.magazines import attached
from appliance.volumes.labels import LabelKind
from appliance.volumes.writer import SessionWriter
from tests.unit.enginehelp import configuration, magbay
from tests.unit.volume_builder import Job, volume

ORDER = "\x1b]0;pwned\x07\x1b[2J\r"


def test_labels_give_no_orders_to_a_terminal(tmp_path: Path) -> None:
    config = configuration(tmp_path)
    attached.create_directories(config)
    job = Job(job_id=7)
    job.label = replace(job.label, job=f"a{ORDER}.1", job_name=f"na{ORDER}\nme", pool=f"po{ORDER}ol")
    job.sink.blocks.clear()
    job.writer = SessionWriter(job.sink, job.ids)
    job.writer.write_label(LabelKind.SOS_LABEL, 7, job.label.pack(LabelKind.SOS_LABEL))
    job.file(b"/x", b"x")
    path = volume(tmp_path / "m1" / "v", *job.end())

    words = [["volume", "show", path], ["volume", "check", path], ["volume", "list", path]]
    words += [["volume", "scan", "--all"], ["jobs"], ["job", "show", 7], ["browse"], ["verify"], ["status"]]
    words += [["restore", "--job", 7, "--to", tmp_path / "out"]]
    for one in words:
        done = magbay(tmp_path, *map(str, one))
        assert done.status == 0, done
        shown = done.stdout + done.stderr
        assert not [char for char in shown if not char.isprintable() and char != "\n"], (one, shown)
        if one in (["jobs"], ["job", "show", 7]):
            assert "na\\x1b]0;pwned\\x07\\x1b[2J\\x0d\\nme" in shown
    assert magbay(tmp_path, "jobs", json_output=True).document["jobs"][0]["name"] == f"na{ORDER}\nme"
