"""`make demo`: boots the image and tells the story of the walking appliance, step by step."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tests.vm.harness import Guest, image_path
from tests.vm.story import Story, scratch


def main() -> int:
    """Run the steps; exit status 0 only when all of them came true."""
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - began:6.1f} s] {text}", flush=True)

    say("booting the image in QEMU (software emulation: this takes a while)")
    with scratch() as folder, Guest.boot(image_path(), Path(folder), progress=say) as guest:
        say("the appliance is up")
        story = Story(guest, say, Path(folder))
        for number, step in enumerate(Story.STEPS, 1):
            say("")
            say(f"=== {step.__doc__ or step.__name__}")
            try:
                step(story)
            except Exception as error:
                say(f"STEP {number} FAILED: {error}")
                say(f"journal and state of the guest: {guest.collect('demo')}")
                return 1
    say("")
    say(f"All {len(Story.STEPS)} steps came true.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
