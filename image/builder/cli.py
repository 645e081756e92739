"""Command line of `image/build`."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from builder import layers
from builder.common import BuildError, cache_directory, say


def _parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="image/build",
        description="Builds the bootable image of the appliance, or finds it in the cache, and prints its path.",
        epilog="Cache: $MAGBAY_CACHE, else $XDG_CACHE_HOME/magbay, else ~/.cache/magbay. See docs/image.md.",
    )
    parser.add_argument("--deb", action="store_true", help="build only the package and print its path")
    parser.add_argument("--path", action="store_true", help="build nothing; print where the image is or would be")
    parser.add_argument("--force", action="store_true", help="build the last layer although it is in the cache")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    """Run the command; 0 is success, 1 trouble that was said on stderr."""
    options = _parse(sys.argv[1:] if words is None else words)
    log = cache_directory() / "logs" / f"build-{time.strftime('%Y%m%d-%H%M%S')}.log"
    log.parent.mkdir(exist_ok=True)
    try:
        result: Path
        if options.path:
            result = layers.image_path(layers.keys().image)
        elif options.deb:
            result = layers.build_package(log)
        else:
            result = layers.build_image(log, force=options.force)
    except BuildError as error:
        say(str(error))
        return 1
    except FileNotFoundError as error:
        say(f"{error.filename} is missing. Install what is needed with image/install-host-packages.")
        return 1
    print(result)
    return 0
