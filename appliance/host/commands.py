"""Running the system's own tools. Secrets are never among the arguments: tools read them from files or inherited
descriptors."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from appliance.errors import MagbayError

_LOOK = 0.5  # seconds between two looks whether a command is to be ended


def run(
    argv: Sequence[str], what: str, *, timeout: float = 600, hint: str = "", descriptors: Iterable[int] = ()
) -> str:
    """Run *argv* and give its standard output; *what* says in words what it was for. It inherits *descriptors*.

    Raises `MagbayError` with the tool's own last words when it is missing, fails or exceeds *timeout* seconds.
    """
    status, output, complaint = attempt(argv, what, timeout=timeout, hint=hint, descriptors=descriptors)
    if status != 0:
        words = (complaint.strip() or output.strip() or f"exit status {status}").splitlines()[-1]
        raise MagbayError(f"{what}: {argv[0]}: {words}", hint=hint)
    return output


def attempt(
    argv: Sequence[str],
    what: str,
    *,
    timeout: float = 600,
    hint: str = "",
    text: str = "",
    descriptors: Iterable[int] = (),
) -> tuple[int, str, str]:
    """Run *argv* with *text* on its standard input and *descriptors* inherited; gives exit status, standard output and
    standard error.

    Raises `MagbayError` when it is missing or exceeds *timeout* seconds.
    """
    environment = _environment()
    try:
        done = subprocess.run(
            argv,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout,
            env=environment,
            input=text,
            pass_fds=tuple(descriptors),
        )
    except FileNotFoundError:
        raise _missing(argv[0], what) from None
    except subprocess.TimeoutExpired:
        raise MagbayError(f"{what}: {argv[0]} did not end within {timeout:.0f} s", hint=hint) from None
    return done.returncode, done.stdout, done.stderr


def interact(argv: Sequence[str], what: str, *, descriptors: Iterable[int] = (), hint: str = "") -> None:
    """Run *argv*, which talks to the person at the terminal itself, however long that takes; all it prints goes to
    standard error. It inherits *descriptors*. Raises `MagbayError`."""
    try:
        done = subprocess.run(argv, env=_environment("TERM"), pass_fds=tuple(descriptors), stdout=sys.stderr.fileno())
    except FileNotFoundError:
        raise _missing(argv[0], what) from None
    if done.returncode != 0:
        raise MagbayError(f"{what}: {argv[0]} ended with status {done.returncode}", hint=hint)


def _environment(*more: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("SOURCE_DATE_EPOCH", *more) if os.environ.get(name)}
    return {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"} | kept


def _missing(program: str, what: str) -> MagbayError:
    return MagbayError(f"{what}: {program} is not installed", hint=f"Install the package that has {program}.")


def shell(
    command: str, facts: Mapping[str, str], *, timeout: float, cancelled: Callable[[], bool] = lambda: False
) -> tuple[int | None, str]:
    """Run *command* by /bin/sh with *facts* in its environment; gives its exit status and all that it printed.

    The status is None when it did not end within *timeout* seconds, or before *cancelled* said so; then it is killed
    with everything it started. What has left its session by then, a daemon, stays. Whatever is left when the shell has
    ended stays as well, and is waited for no longer than a second if it has the standard output still.
    """
    environment = {name: os.environ[name] for name in ("HOME", "USER", "LOGNAME", "LANG") if name in os.environ}
    environment |= {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", **facts}
    deadline = time.monotonic() + timeout
    with subprocess.Popen(
        ["/bin/sh", "-c", command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
    ) as process:
        ended = False
        while not cancelled() and (left := deadline - time.monotonic()) > 0:
            try:
                output, _ = process.communicate(timeout=min(left, _LOOK))
            except subprocess.TimeoutExpired as error:
                output = error.output or b""
                if not ended:
                    ended = process.poll() is not None
                    continue  # what it printed last may still come
            return process.returncode, output.decode("utf-8", "replace")
        if process.poll() is not None:
            return process.returncode, _rest(process)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        return None, _rest(process)


def _rest(process: subprocess.Popen[bytes]) -> str:
    try:
        output, _ = process.communicate(timeout=_LOOK)
    except subprocess.TimeoutExpired as error:  # somebody has its standard output still
        output = error.output or b""
    return output.decode("utf-8", "replace")


def ours(module: str) -> list[str]:
    """The words that run `main()` of *module* of this package in a process of its own, arguments to be added.

    `python -m` would not find a package that is private to /usr/lib/magbay.
    """
    place = str(Path(__file__).parents[2])
    program = f"import sys; sys.path.insert(0, {place!r}); from {module} import main; sys.exit(main())"
    return [sys.executable, "-c", program]
