"""When the lists of volumes on a magazine are made anew."""

from __future__ import annotations

import asyncio

from appliance.agents.lists import ListKeeper
from appliance.config.schema import Config
from appliance.host.api import UnitState
from appliance.magazines import leaflet, unlisted
from appliance.magazines.states import State
from appliance.volumes.blocks import SessionIds
from appliance.volumes.labels import VolumeLabel
from appliance.volumes.writer import label_block
from tests.unit.test_media import House, disk


def test_the_lists_on_a_magazine_follow_what_daemons_write(config: Config) -> None:
    async def story() -> None:
        h, d = House(config), disk(config, 1)
        keeper, started = ListKeeper(config, h.host), h.host.units.started  # type: ignore[attr-defined]
        assert d.content is not None
        volume = d.content / "mag1-0001"
        label = VolumeLabel("mag1-0001", "Default", "File", label_time=0, write_time=0)
        volume.write_bytes(label_block(label, SessionIds(1, 1)))
        leaflet.checksums(d.content, "mag1", everything=False, advance=lambda count: None)
        h.world.plug(d)

        async def later(seconds: float, sectors: int = 0) -> int:
            h.host.clock.time += seconds  # type: ignore[attr-defined]
            h.world.sectors[d.filesystem_uuid] = h.world.sectors.get(d.filesystem_uuid, 0) + sectors
            await keeper.round(await h.media.reconcile())
            return len([unit for unit in started if unit.startswith("magbay-lists@")])

        await h.settle()
        assert [await later(seconds) for seconds in (0, 70, 70)] == [0, 0, 0], "the lists are current"
        with volume.open("ab") as file:
            file.write(b"more")
        assert await later(100) == 0, "nothing is looked at as long as the device has taken nothing"
        assert [await later(40, 8), await later(40, 8), await later(40, 8), await later(50)] == [0, 0, 0, 0]
        assert not unlisted.marked(config, d.filesystem_uuid), "it is being written to"
        assert await later(20) == 1 and unlisted.marked(config, d.filesystem_uuid)
        # As the unit does it, whose own writing is not followed by another one.
        unlisted.begin(config, d.filesystem_uuid)
        leaflet.checksums(d.content, "mag1", everything=False, advance=lambda count: None)
        unlisted.done(config, d.filesystem_uuid)
        assert [await later(seconds, 8 if seconds == 1 else 0) for seconds in (1, 70, 700)] == [1, 1, 1]
        # What the eject unit has found is remembered for the next time.
        h.media.eject("mag1")
        await h.settle()
        h.world.unlisted.add(d.luks_uuid)
        keeper.note(await h.media.reconcile())
        assert unlisted.marked(config, d.filesystem_uuid)

    asyncio.run(story())


def test_the_lists_on_a_magazine_follow_what_jobs_write(config: Config) -> None:
    async def story() -> None:
        h, d = House(config), disk(config, 1)
        keeper, started = ListKeeper(config, h.host), h.host.units.started  # type: ignore[attr-defined]
        h.world.plug(d)

        async def later(seconds: float) -> list[str]:
            h.host.clock.time += seconds  # type: ignore[attr-defined]
            await keeper.round(await h.media.reconcile())
            return [unit for unit in started if unit.startswith("magbay-lists@")]

        await h.settle()
        assert await later(100) == [], "nobody has written"
        unlisted.mark(config, d.filesystem_uuid)
        unlisted.mark(config, "directory:m")
        assert [path.name for path in (config.state_dir / "unlisted").iterdir()] == [d.filesystem_uuid]
        assert await later(0) == [] and await later(59) == [], "more jobs may follow"
        assert await later(2) == ["magbay-lists@mag1.service"]
        assert len(await later(300)) == 1, "not while it is being done, or has just failed"
        unlisted.begin(config, d.filesystem_uuid)
        assert unlisted.marked(config, d.filesystem_uuid), "whoever is killed while reading has not done it"
        unlisted.mark(config, d.filesystem_uuid)
        unlisted.done(config, d.filesystem_uuid)
        assert unlisted.marked(config, d.filesystem_uuid), "a job has begun since the reading began"
        unlisted.begin(config, d.filesystem_uuid)
        unlisted.done(config, d.filesystem_uuid)
        assert len(await later(1000)) == 1
        # While the magazine is ejected, whoever reads it for that is stopped.
        units = h.host.units
        units._states["magbay-lists@mag1.service"] = UnitState("activating")  # type: ignore[attr-defined]
        h.media.eject("mag1")
        assert (await h.settle())["mag1"] is State.SAFE
        assert "magbay-lists@mag1.service" not in await units.states(["magbay-lists@*"])

    asyncio.run(story())
