"""What the words of `magbay backup` mean where they name neither a job nor a path."""

from __future__ import annotations

import os

from appliance.config.schema import Config
from appliance.errors import NotFoundError, UsageError
from appliance.spelling import near
from appliance.storage.model import Level


def check_paths(config: Config, words: list[str]) -> None:
    """Look at words that are to name paths. One without a slash that is no path here may be meant to be a job.

    Raises `NotFoundError` for it, `UsageError` for a job among other words.
    """
    for word in words:
        if "/" in word or os.path.lexists(word):
            continue
        name, _, level = word.partition("@")
        if name in config.jobs and len(words) > 1:
            raise UsageError(
                f"{name} is a job: it runs alone, without other jobs and paths", hint="Give one at a time."
            )
        if name in config.jobs:
            levels = ", ".join(level.word for level in Level)
            raise NotFoundError(f"job {name} has no level {level}", hint=f"Levels are {levels}.")
        jobs = f"Jobs are {', '.join(config.jobs)}." if config.jobs else "Look at the spelling of the path."
        raise NotFoundError(
            f"{word} is neither a job of the configuration nor a file or directory here",
            hint=near(name, config.jobs, jobs),
        )
