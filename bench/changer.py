"""What a call of the Changer Command costs, next to yardsticks and to the work that vchanger does for each call.

All rows of one size are run in turn, one process at a time. vchanger itself is not in Debian: name a binary of it in
VCHANGER and it is measured in the same rounds. Without it two things stand for it: its figures from elsewhere (marked),
and a small perl program that does what vchanger does for each call: look at every volume, rewrite a file for every bay.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from appliance.changer import command

SIZES = ((1, 70), (6, 69), (20, 500))
LABEL = b"\x00\x00\x00\x01\x00\x00\x00\xc8\x00\x00\x00\x00BB02" + bytes(198)
# Median ms of vchanger 1.0.3 on another machine, where `sh -c :` took 1.08 and `python3 -I -S -c pass` 10.37.
ELSEWHERE = {(1, 70): "3.3-4.0", (6, 69): "5.9-6.5", (20, 500): "51-53"}
ELSEWHERE_YARDSTICKS = {"sh -c :": "1.08", "python3 -I -S -c pass": "10.37"}
# Like vchanger: one stat and one access for each volume, one small file rewritten for each bay.
LIKE_VCHANGER = (
    "for my $m (glob $ARGV[0]) { opendir my $d, $m or die; my $n = 0;"
    "for (readdir $d) { $n++ if -f qq($m/$_) && -w _ } open my $f, q(>), qq($m.bay) or die; print $f qq($m,$n,1\\n) }"
)
# The first call after a magazine changed; nobody has looked since.
CHANGED = "magbay-changer list, just changed"
BIN = Path(sys.executable).parent


def make(root: Path, magazines: int, volumes: int) -> tuple[Path, int]:
    """A vchanger configuration with that many directories of volumes; the file and a slot in the middle."""
    root.mkdir()
    (root / "work").mkdir()
    lines = ["Storage Resource = bench", f"Work Dir = {root}/work", f"Logfile = {root}/log", 'bconsole = ""']
    for magazine in range(magazines):
        (root / f"m{magazine}").mkdir()
        lines.append(f"Magazine = {root}/m{magazine}")
        for volume in range(volumes):
            (root / f"m{magazine}" / f"bench_{magazine:04d}_{volume:04d}").write_bytes(LABEL)
    (root / "vchanger.conf").write_text("\n".join(lines) + "\n")
    return root / "vchanger.conf", magazines * volumes // 2


def cases(config: Path, slot: int) -> dict[str, list[str]]:
    """Name to command line of all that is measured at one size, in order."""
    words = {
        "loaded (empty)": ["loaded", "0", "x", "0"],
        "load": ["load", str(slot), "x", "0"],
        "loaded (full)": ["loaded", "0", "x", "0"],
        "unload": ["unload", str(slot), "x", "0"],
        "list": ["list"],
        "listall": ["listall"],
        "slots": ["slots"],
    }
    found = {
        "sh -c :": ["/bin/sh", "-c", ":"],
        "perl -e 1": ["/usr/bin/perl", "-e", "1"],
        "python3 -I -S -c pass": ["/usr/bin/python3", "-I", "-S", "-c", "pass"],
        "work like vchanger's (perl)": ["/usr/bin/perl", "-e", LIKE_VCHANGER, f"{config.parent}/m*[0-9]"],
    }
    found |= {
        f"magbay-changer {name}": [str(BIN / "magbay-changer"), str(config), *line] for name, line in words.items()
    }
    full = [str(BIN / "magbay-changer-full"), str(config), "loaded", "0", "x", "0"]
    found["magbay-changer-full loaded (Python)"] = full
    found[CHANGED] = found["magbay-changer list"]
    if vchanger := os.environ.get("VCHANGER"):
        # Its own work directory: each of the two would take the other's drives for its own.
        theirs = config.with_name("theirs.conf")
        theirs.write_text(config.read_text().replace("/work\n", "/theirs\n"))
        found |= {f"vchanger {name}": [vchanger, str(theirs), *line] for name, line in words.items()}
    return found


def run(line: list[str], quiet: int) -> float:
    """Milliseconds of one process."""
    actions = [(os.POSIX_SPAWN_DUP2, quiet, 1)]
    began = time.perf_counter_ns()
    child = os.posix_spawn(line[0], line, os.environ, file_actions=actions)
    _child, status = os.waitpid(child, 0)
    took = (time.perf_counter_ns() - began) / 1e6
    if status:
        raise SystemExit(f"status {status}: {' '.join(line)}")
    return took


def measure(root: Path, size: tuple[int, int], rounds: int, quiet: int) -> None:
    """Print the table of one size."""
    config, slot = make(root, *size)
    command.main([str(config), "refresh"])
    time.sleep(0.05)  # what has just changed is not published for the quick half
    command.main([str(config), "refresh"])
    lines = cases(config, slot)
    times: dict[str, list[float]] = {name: [] for name in lines}
    for turn in range(rounds + 2):
        for name, line in lines.items():
            if name == CHANGED:
                os.utime(config.parent / "m0")
                time.sleep(0.03)  # longer than a time stamp takes to tell
            took = run(line, quiet)
            if turn >= 2:
                times[name].append(took)
    print(
        f"\n{f'{size[0]} magazines x {size[1]} volumes':<40} {'median':>9} {'p10':>9} {'p90':>9}   vchanger elsewhere"
    )
    for name, values in times.items():
        ordered = sorted(values)
        low, high = ordered[len(ordered) // 10], ordered[len(ordered) * 9 // 10]
        other = ELSEWHERE[size] if name.startswith("magbay-changer ") else ELSEWHERE_YARDSTICKS.get(name, "")
        print(f"{name:<40} {statistics.median(values):>6.2f} ms {low:>6.2f} ms {high:>6.2f} ms   {other}")


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=40, help="rounds (default 40)")
    rounds = parser.parse_args().n
    if not os.environ.get("VCHANGER"):
        print("vchanger is not packaged for Debian; VCHANGER=/path/of/its/binary has it in the same rounds.")
    print("Last column: medians (ms) of vchanger 1.0.3 on another machine; compare by the yardsticks of both machines.")
    base = Path(tempfile.mkdtemp(prefix="magbay-bench-"))
    quiet = os.open(os.devnull, os.O_WRONLY)
    try:
        for size in SIZES:
            measure(base / f"{size[0]}x{size[1]}", size, rounds, quiet)
    finally:
        os.close(quiet)
        shutil.rmtree(base)
    return 0


if __name__ == "__main__":
    sys.exit(main())
