"""Creating volumes ahead of their use."""

from __future__ import annotations

from collections.abc import Callable

from appliance.config.schema import Config
from appliance.errors import AwayError, MagbayError, PermissionDeniedError
from appliance.magazines import attached, leaflet
from appliance.magazines.attached import Magazine
from appliance.storage.catalog import Catalog
from appliance.storage.model import Media
from appliance.storage.pools import label_new, may_use, pool_config, reachable


def create(config: Config, *, magazine: str | None, pool: str, count: int) -> list[Media]:
    """Label *count* new volumes of *pool* on *magazine* (None: the first that can be written).

    Each is synced before its catalog row is.
    Raises `NotFoundError`, `AwayError`, `PermissionDeniedError`, `VolumeFullError`.
    """
    pool_config(config, pool)
    attached.create_directories(config)
    place = _named(config, magazine) if magazine else _first(config, pool)
    made = []
    with Catalog.of(config) as catalog:
        for _ in range(count):
            opened = label_new(catalog, config, place, pool, catalog.new_session())
            opened.device.close()
            made.append(opened.media)
    return made


def fill(config: Config, *, magazine: str, pool: str, count: int, say: Callable[[int], None]) -> list[str]:
    """Create volumes until *magazine* holds *count*; gives the names of all that it holds. *say* is told how many are
    created.

    What a kill left behind between a label and its catalog row is one file more here, and is taken up as a new volume
    by `create`: so it is counted again. Raises as `create`, `OSError`.
    """
    directory = _named(config, magazine).path
    assert directory is not None  # a reachable one has a path
    while (missing := count - len(leaflet.volumes(directory))) > 0:
        say(missing)
        create(config, magazine=magazine, pool=pool, count=missing)
    return leaflet.volumes(directory)


def _named(config: Config, name: str) -> Magazine:
    magazine = attached.find(config, name)
    if not reachable(magazine):
        raise AwayError(f"magazine {name} is not mounted", hint="Plug its disk in and try again.")
    if not magazine.writable:
        hint = f"Look at the rights on {magazine.path}."
        raise PermissionDeniedError(f"magazine {name} cannot be written", hint=hint)
    return magazine


def _first(config: Config, pool: str) -> Magazine:
    known = [magazine for magazine in attached.known(config) if may_use(config, pool, magazine)]
    for magazine in known:
        if magazine.writable and reachable(magazine):
            return magazine
    if not known:
        raise MagbayError("there is no magazine", hint="Name one under 'magazines', or run 'magbay prepare'.")
    here = [magazine.name for magazine in known if reachable(magazine)]
    if here:
        raise PermissionDeniedError(
            f"magazine {' or '.join(here)} cannot be written",
            hint="Run as a user who may write there, or plug in another.",
        )
    raise AwayError("no magazine is here", hint=f"Plug in {' or '.join(m.name for m in known)}.")
