"""Which volume a job writes on, and the labelling of new ones."""

from __future__ import annotations

import contextlib
import errno
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from appliance import __version__
from appliance.config.jobs import LabelDialect, PoolConfig
from appliance.config.names import Names
from appliance.config.schema import Config
from appliance.errors import AwayError, MagbayError, NotFoundError, UsageError
from appliance.host import files
from appliance.magazines.attached import Magazine
from appliance.storage.catalog import Catalog, CatalogError
from appliance.storage.device import DISK_TELLS, FileVolume
from appliance.storage.model import Media
from appliance.storage.tail import labelled_by
from appliance.volumes.blocks import SessionIds
from appliance.volumes.labels import Dialect, VolumeLabel
from appliance.volumes.writer import label_block

MEDIA_TYPE = "File"
# Less free space than two blocks is no room.
_LEAST_ROOM = 2 * 65536
_DIALECTS = {LabelDialect.BACULA: Dialect.BACULA, LabelDialect.BAREOS: Dialect.BAREOS}


_ELSEWHERE = "Take a magazine that the pool's settings magazines or rotation_set name."
_MORE = "Raise the pool's maximum_volumes, or let its jobs expire (retention)."


class PoolFullError(MagbayError):
    """The pool may have no more volumes."""


@dataclass(frozen=True)
class OpenVolume:
    """A volume ready for appending. *fresh*: it holds nothing but its label, written for this session."""

    device: FileVolume
    media: Media
    fresh: bool


def pool_config(config: Config, name: str) -> PoolConfig:
    """The pool *name* of the configuration. Raises `NotFoundError`."""
    try:
        return config.pools[name]
    except KeyError:
        raise NotFoundError(
            f"there is no pool {name}", hint=f"The configuration has: {', '.join(sorted(config.pools)) or 'none'}."
        ) from None


def may_use(config: Config, pool: str, magazine: Magazine) -> bool:
    """Whether volumes of the pool may be on the magazine."""
    bound = config.magazines_of(pool)
    return not bound or magazine.name in bound


def dialect(pool: PoolConfig) -> Dialect:
    """Whose labels the volumes of the pool carry."""
    return _DIALECTS[pool.label_dialect]


def reachable(magazine: Magazine) -> bool:
    """Whether the directory of the magazine is really there: for a disk, mounted (autofs mounts it at this access)."""
    if magazine.path is None:
        return False
    try:
        next(magazine.path.iterdir(), None)
    except OSError:
        return False
    # The simulated machine mounts by a symbolic link, which autofs never makes.
    return magazine.identity.startswith("directory:") or magazine.path.is_mount() or magazine.path.is_symlink()


def label_new(
    catalog: Catalog, config: Config, magazine: Magazine, pool_name: str, ids: SessionIds, stream: int = 0
) -> OpenVolume:
    """Create the next volume of the magazine (`changer.volume_names` names it), label it, enter it in the catalog.

    *stream*: number of the volume in its job (0 for the first, 2, 3 …). Raises `VolumeFullError`,
    `MagazineLostError`, `PoolFullError`, `UsageError`.
    """
    if magazine.path is None:
        raise AwayError(f"magazine {magazine.name} is not here", hint="Plug its disk in and try again.")
    pool = pool_config(config, pool_name)
    if not may_use(config, pool_name, magazine):
        raise UsageError(f"pool {pool_name} has no volumes on magazine {magazine.name}", hint=_ELSEWHERE)
    # One process at a time chooses names, so that no two volumes of one catalog are called the same.
    with _names_locked(config.state_dir):
        if pool.maximum_volumes and len(catalog.media(pool=pool_name)) >= pool.maximum_volumes:
            raise PoolFullError(f"pool {pool_name} has its {pool.maximum_volumes} volumes already", hint=_MORE)
        template, changer = config.changer.volume_names, config.changer.name
        names = Names(template, magazine=magazine.name, changer=changer, pool=pool_name)
        number = max((names.number(media.name) or 0 for media in catalog.media()), default=0)
        while True:
            number += 1
            name = names.name(number)
            label = label_block(new_label(name, pool_name, pool), ids, stream)
            try:
                device = FileVolume.create(magazine.path / name, magazine.name, label)
            except FileExistsError:
                found = _left_over(catalog, magazine, name, label)
                if found is None:
                    continue  # a volume that this catalog does not know
                device = found
            except OSError as error:
                raise _not_created(error, name, magazine) from None
            media = catalog.add_media(name, magazine.name, magazine.identity, pool_name, device.end)
            return OpenVolume(device, media, fresh=True)


def _left_over(catalog: Catalog, magazine: Magazine, name: str, label: bytes) -> FileVolume | None:
    """A volume that was labelled here but not entered, as a power cut in between leaves it: labelled anew.

    None when it is anything else.
    """
    assert magazine.path is not None
    path = magazine.path / name
    try:
        if catalog.media(name=name) or labelled_by(path, name) not in catalog.sessions():
            return None
        with contextlib.ExitStack() as stack:
            device = FileVolume.open(path, magazine.name)
            stack.callback(device.close)
            device.cut(0)
            device.append(memoryview(label))
            device.sync()
            files.sync_directory(path.parent)
            stack.pop_all()
            return device
    except CatalogError:
        raise
    except (MagbayError, OSError):
        return None


@contextlib.contextmanager
def _names_locked(state_dir: Path) -> Iterator[None]:
    path = state_dir / "label.lock"
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(files.locked(path))
            files.adopt(path, state_dir)
        except OSError as error:
            raise MagbayError(f"{path}: {error.strerror}", hint="Look at the file system of state_dir.") from None
        yield


def _not_created(error: OSError, name: str, magazine: Magazine) -> MagbayError:
    rights = error.errno in (errno.EACCES, errno.EPERM)
    return MagbayError(
        f"volume {name} cannot be created on magazine {magazine.name}: {error.strerror}",
        hint=f"Look at the rights on {magazine.path}." if rights else DISK_TELLS,
    )


def new_label(name: str, pool_name: str, pool: PoolConfig) -> VolumeLabel:
    """The label of the volume *name*, written now."""
    now = int(time.time() * 1_000_000)
    return VolumeLabel(
        name=name,
        pool=pool_name,
        media_type=MEDIA_TYPE,
        label_time=now,
        write_time=now,
        host=socket.gethostname()[:100],
        program="magbay",
        program_version=f"Ver. {__version__}",
        program_date="",
        dialect=dialect(pool),
    )
