"""The catalog in PostgreSQL, against a real server: the tests of the engine once more, and a server that goes away."""

from __future__ import annotations

import inspect
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance.config.loader import load
from appliance.config.schema import Config
from appliance.errors import ConfigError, ExitStatus
from appliance.storage import backup
from appliance.storage.catalog import Catalog, CatalogError
from appliance.storage.model import JobStatus, Level
from tests.native.postgres import Server, server
from tests.unit import (
    enginehelp,
    test_accurate,
    test_backup,
    test_browse,
    test_catalog_copies,
    test_names,
    test_pools,
    test_pools_failed,
    test_restore_lanes,
    test_restore_places,
    test_scan,
    test_scan_settling,
    test_scrub,
    test_searching,
    test_storage_parts,
    test_verify_disk,
)
from tests.unit.enginehelp import MAGAZINES, PREFIX, below, bring_back, magbay, rich_tree, save

MODULES = (test_accurate, test_backup, test_browse, test_catalog_copies, test_names, test_pools)
MODULES += (test_restore_lanes, test_restore_places, test_scan, test_scan_settling, test_scrub, test_searching)
MODULES += (test_verify_disk, test_pools_failed)
# What of them is about SQLite's file, or costs much and has nothing to do with the catalog.
NOT_HERE = {
    "test_look_ups_use_the_index",
    "test_jobs_are_read_once_however_many_come",
    "test_the_index_leads_there",
    "test_what_is_alone_is_found_by_its_number",
    "test_a_catalog_of_the_version_before_is_brought_up",
    "test_a_catalog_of_version_5_is_brought_up",
    "test_an_upgrade_that_fails_changes_nothing",
    "test_the_commands",
    "test_setting_a_catalog_aside",
    "test_a_file_that_is_no_catalog_stays_as_it_is",
    "test_the_command",
    "test_samples_of_bacula_and_bareos",
    "test_volumes_in_any_order_on_any_magazine",
    "test_many_small_volumes",
    "test_it_can_be_turned_off",
}


def _tests() -> Iterator[Callable[..., None]]:
    for module in MODULES:
        for name, test in vars(module).items():
            if name.startswith("test_") and callable(test) and test.__module__ == module.__name__:
                marks = getattr(test, "pytestmark", [])
                if name not in NOT_HERE and not any(mark.name == "parametrize" for mark in marks):
                    yield test


TESTS = list(_tests())


@pytest.fixture(scope="module")
def postgres() -> Iterator[Server]:
    """One server for all tests of this file."""
    with server() as one:
        yield one


@pytest.fixture
def address(postgres: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty database; configurations of the tests name it, and catalogs by their folder are in it, too."""
    main = postgres.address("engine")
    line = f'catalog: {{database: "{main}"}}\n'
    opened = Catalog.__init__
    schemas: dict[Path, str] = {}

    def in_postgres(self: Catalog, state_dir: Path, name: str = "catalog.db", *, database: str = "") -> None:
        # The first folder is the test's own; a second one in it is another machine.
        new = state_dir not in schemas
        schema = schemas.setdefault(state_dir, f"engine{len(schemas)}" if schemas else "engine")
        if new:
            postgres.address(schema)
        opened(self, state_dir, name, database=main.replace("%3Dengine", f"%3D{schema}"))

    monkeypatch.setattr(Catalog, "__init__", in_postgres)

    def lose(config: Config) -> None:
        shutil.rmtree(config.state_dir)
        postgres.address(schemas[config.state_dir])

    for losing in (test_scan, test_scan_settling, test_catalog_copies):
        monkeypatch.setattr(losing, "lose", lose)
    for module in (enginehelp, test_browse, test_pools):
        monkeypatch.setattr(module, "PREFIX", PREFIX + line, raising=False)
    return main


@pytest.fixture
def config(tmp_path: Path, address: str) -> Config:
    """As in the unit suite."""
    return configured(tmp_path, address)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """As in the tests of pools."""
    (tmp_path / "data").write_bytes(b"x" * 1000)
    return tmp_path / "data"


def _fixture(name: str, test: Callable[..., None], request: pytest.FixtureRequest) -> object:
    """A fixture of the test's own module, made by hand."""
    module = inspect.getmodule(test)
    own = getattr(module, name, None)
    made = getattr(own, "__wrapped__", None) or getattr(own, "__pytest_wrapped__", None)
    if made is None:
        return request.getfixturevalue(name)
    function = getattr(made, "obj", made)
    return function(*(_fixture(one, test, request) for one in inspect.signature(function).parameters))


@pytest.mark.parametrize("test", TESTS, ids=lambda test: f"{test.__module__.rpartition('.')[2]}.{test.__name__}")
def test_the_engine(test: Callable[..., None], address: str, request: pytest.FixtureRequest) -> None:
    wanted = inspect.signature(test).parameters
    test(**{name: _fixture(name, test, request) for name in wanted})


def configured(
    folder: Path, address: str, more: str = "", *, wait: str = "0s", pool: str = "maximum_volume_bytes: 10GB"
) -> Config:
    """A configuration with its catalog at *address*."""
    file = folder / "magbay.yaml"
    line = f'catalog: {{database: "{address}", wait_for_database: {wait}}}\n'
    file.write_text(f"{PREFIX}{line}{MAGAZINES}pools: {{Default: {{{pool}}}}}\n{more}")
    return load(file)


def test_one_line_changes_it(tmp_path: Path, postgres: Server) -> None:
    config = configured(tmp_path, postgres.address("line"))
    tree = rich_tree(tmp_path / "source")
    done = magbay(tmp_path, "backup", str(tree), json_output=True)
    assert done.status == 0 and not (tmp_path / "state" / "catalog.db").exists()
    assert postgres.sql("SELECT count(*) FROM line.File") == str(done.document["files"])
    assert magbay(tmp_path, "jobs", json_output=True).document["jobs"][0]["status"] == "done"
    assert "plain.txt" in magbay(tmp_path, "browse", str(tree)).stdout
    assert magbay(tmp_path, "verify").status == 0
    assert magbay(tmp_path, "restore", "--to", str(tmp_path / "out")).status == 0
    enginehelp.assert_same(tree, below(tmp_path / "out", tree))
    save(config, tree, level=Level.INCREMENTAL)


def test_millions_do_not_come_at_once(tmp_path: Path, postgres: Server) -> None:
    """Rows of a job come through a cursor of the server, which other transactions do not disturb."""
    config = configured(tmp_path, postgres.address("many"))
    with Catalog.of(config) as catalog:
        job = catalog.start_job(test_storage_parts.NEW)
        from appliance.storage.saved_files import FileWriter, of_job

        rows = FileWriter(catalog, job.job_id)
        for number in range(12_000):
            rows.add(number + 1, 3, b"/d%d/f%d" % (number // 100, number), "A A A", "")
        rows.flush()
        seen = 0
        for saved in of_job(catalog, job.job_id):
            seen += 1
            if saved.file_index % 5000 == 0:
                catalog.log(job.job_id, "info", "meanwhile")
        assert seen == 12_000


def test_names_are_looked_for_in_the_index(tmp_path: Path, postgres: Server) -> None:
    """By the server's own choice, with what it knows of the tables when nobody has analysed them, and afterwards."""
    config = configured(tmp_path, postgres.address("names"))
    schema = {"names.file": "filename", "names.path": "pathfolder"}
    with Catalog.of(config) as catalog:
        for name in schema:
            catalog.change(f"ALTER TABLE {name} SET (autovacuum_enabled=off)")
        files = ((n, b"/data/with-a-longer-name/directory-%d/file-%d" % (n, n)) for n in range(1, 80_000))
        job = test_names.entered(catalog, files, "A" * 200)
        for _ in range(2):
            for like in test_names.LOOKS[:2]:  # where all names are meant, reading them is right
                for query, index in zip(test_names.asked(catalog, [job.job_id], like), schema.values(), strict=True):
                    values = [job.job_id, *like.condition("")[1]] if "File f" in query else like.condition("")[1]
                    # Sequential scans cost what they cost: nothing is turned off.
                    plan = [row for (row,) in catalog.rows("EXPLAIN " + query, list(values))]
                    looks = [row for row in plan if f"using {index} " in row or f"Index Scan on {index} " in row]
                    assert looks and not [row for row in plan if re.search("Seq Scan on (file|path)", row)], plan
            catalog.change("ANALYZE")


def test_an_older_catalog_is_brought_up(tmp_path: Path, postgres: Server) -> None:
    config = configured(tmp_path, postgres.address("older"))
    tree = rich_tree(tmp_path / "source")
    save(config, tree, name="tree")
    queries = ("SELECT * FROM Path ORDER BY PathId", "SELECT * FROM Alone")
    with Catalog.of(config) as catalog:
        before = [list(catalog.rows(query)) for query in queries]
        for statement in ("DROP INDEX FileName", "DROP INDEX PathFolder", "DROP TABLE Alone"):
            catalog.change(statement)
        catalog.change("ALTER TABLE Path DROP COLUMN Folder")
        catalog.change("UPDATE Version SET Version=5")
    with Catalog.of(config) as catalog:
        assert [list(catalog.rows(query)) for query in queries] == before and all(before)
        assert list(catalog.rows("SELECT indexname FROM pg_indexes WHERE indexname='filename'"))
    assert magbay(tmp_path, "browse", "plain.txt").status == 0


def test_a_server_that_goes_away_never_makes_a_job_good(tmp_path: Path, postgres: Server) -> None:
    config = configured(tmp_path, postgres.address("away"))
    tree = tmp_path / "data"
    tree.mkdir()
    for number in range(50):
        (tree / f"file-{number}").write_bytes(os.urandom(1000))
    assert save(config, tree).status is JobStatus.DONE
    gone: list[bool] = []

    def crash(_count: int) -> None:
        if not gone:
            gone.append(True)
            postgres.stop(signal.SIGQUIT)

    try:
        result = backup.run(config, backup.BackupRequest((tree,)), log=lambda text, fields: None, progress=crash)
        assert (result.status, result.exit_status) == (JobStatus.FAILED, ExitStatus.FAILED)
        assert result.errors and "PostgreSQL" in result.hint
        with pytest.raises(CatalogError) as told:
            save(config, tree)
        assert "PostgreSQL server" in told.value.hint
        assert magbay(tmp_path, "jobs").status == 1
    finally:
        postgres.start()
    assert bring_back(config, tmp_path / "out").exit_status is ExitStatus.DONE
    with Catalog.of(config) as catalog:
        assert [job.status for job in catalog.jobs()] == [JobStatus.FAILED, JobStatus.DONE]
    again = save(config, tree)
    assert again.status is JobStatus.DONE and again.volumes == ("m1-0001",)


def test_it_moves_to_postgresql_and_back(tmp_path: Path, postgres: Server) -> None:
    there = postgres.address("moved")
    sqlite = enginehelp.configuration(tmp_path)
    states = test_scan.history(tmp_path, sqlite)
    before = test_scan.rows(sqlite)
    assert magbay(tmp_path, "catalog", "copy", there.replace("postgres@", "postgres:hush@")).status == 2
    assert magbay(tmp_path, "catalog", "copy", there).status == 0
    (tmp_path / "state" / "catalog.db").rename(tmp_path / "old.db")
    config = configured(tmp_path, there)
    test_scan.assert_restores(tmp_path, config, states)
    more = save(config, tmp_path / "source", name="tree", level=Level.INCREMENTAL)
    assert more.status is JobStatus.DONE and more.job_id > max(states)
    assert magbay(tmp_path, "catalog", "copy", there).status == 1  # not empty
    assert magbay(tmp_path, "catalog", "copy", str(tmp_path / "state" / "catalog.db")).status == 0
    config = enginehelp.configuration(tmp_path)
    after = test_scan.rows(config)
    assert after["jobs"][:-1] == before["jobs"] and after["files"][: len(before["files"])] == before["files"]
    assert save(config, tmp_path / "source", name="tree").job_id > more.job_id


def test_passwords_have_no_place_in_the_configuration(tmp_path: Path) -> None:
    for address in ("postgresql://magbay:hush@host/db", "postgresql:///db?password=hush"):
        with pytest.raises(ConfigError) as told:
            configured(tmp_path, address)
        assert "hush" not in str(told.value) + told.value.hint


def test_a_password_comes_from_a_credential(tmp_path: Path, postgres: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = postgres.data / "pg_hba.conf"
    before = rules.read_text()
    postgres.sql("CREATE ROLE magbay LOGIN PASSWORD 'hush-hush'; CREATE SCHEMA magbay AUTHORIZATION magbay")
    rules.write_text("local all magbay scram-sha-256\n" + before)
    postgres.sql("SELECT pg_reload_conf()")
    try:
        config = configured(tmp_path, f"postgresql://magbay@/postgres?host={postgres.folder}")
        with pytest.raises(CatalogError, match="password"):
            Catalog.of(config)
        (tmp_path / "credentials").mkdir()
        (tmp_path / "credentials" / "pgpass").write_text("*:*:*:magbay:hush-hush\n")
        (tmp_path / "credentials" / "pgpass").chmod(0o400)
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "credentials"))
        (tmp_path / "file").write_bytes(b"content")
        assert save(config, tmp_path / "file").status is JobStatus.DONE
    finally:
        rules.write_text(before)
        postgres.sql("SELECT pg_reload_conf()")
    shutil.rmtree(tmp_path / "credentials")
