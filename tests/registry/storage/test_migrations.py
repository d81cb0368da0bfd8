"""Migrations keep what is stored, end at the tables that the code expects, and survive a kill."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

import tunery.registry.storage
from tunery.registry.home import Home
from tunery.registry.registry import Registry
from tunery.registry.storage.schema import HEAD, metadata

OPEN = """
import sys
from pathlib import Path
from tunery.registry.home import Home
from tunery.registry.registry import Registry
Registry.open(Home(Path(sys.argv[1]))).close()
"""
DIE = """
import os, signal
from sqlalchemy import event
from sqlalchemy.engine import Engine
@event.listens_for(Engine, "before_cursor_execute")
def die(connection, cursor, statement, parameters, context, many):
    if statement.lstrip().startswith(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
"""


def config() -> Config:
    settings = Config()
    settings.set_main_option("script_location", str(Path(tunery.registry.storage.__file__).parent / "migrations"))
    return settings


def at_revision(home: Home, revision: str) -> None:
    """Make a registry as an older Tunery left it."""
    home.ensure()
    engine = create_engine(f"sqlite:///{home.database}")
    settings = config()
    with engine.begin() as connection:
        settings.attributes["connection"] = connection
        command.upgrade(settings, revision)
    engine.dispose()


def test_the_code_is_written_for_the_last_migration() -> None:
    assert ScriptDirectory.from_config(config()).get_heads() == [HEAD]


def test_migrations_end_at_the_tables_that_the_code_knows(registry: Registry, home: Home) -> None:
    engine = create_engine(f"sqlite:///{home.database}")
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()


def test_moves_from_before_kinds_keep_their_meaning(home: Home) -> None:
    at_revision(home, "0001")
    moves = [(None, 1, "published"), (1, 2, "published"), (2, 1, "rollback"), (1, 2, "better"), (2, None, "")]
    with sqlite3.connect(home.database) as database:
        database.execute("INSERT INTO adapters VALUES ('a/b', 2, 0)")
        for number in (1, 2):
            database.execute(
                "INSERT INTO versions VALUES ('a/b', ?, 'd', 'tiny', 'b', 'lora', '{}', '{}', 0)", [number]
            )
        for before, after, reason in moves:
            database.execute(
                "INSERT INTO alias_moves (adapter, alias, before, after, moved_at, actor, reason) "
                "VALUES ('a/b', 'production', ?, ?, 0, 't', ?)",
                [before, after, reason],
            )
    database.close()
    with Registry.open(home) as registry:
        assert [move.kind for move in registry.history("a/b")] == ["publish", "publish", "rollback", "move", "drop"]
        assert registry.rollback("a/b", actor="t").after == 2
        assert [version.number for version in registry.versions("a/b")] == [1, 2]


def test_versions_from_before_uses_of_files_are_found_by_their_files(home: Home) -> None:
    at_revision(home, "0002")
    manifests: list[object] = [
        {
            "data": [{"name": "rows.jsonl", "sha256": "a" * 64}, {"name": "val.jsonl", "sha256": "b" * 64}],
            "validation": True,
        },
        {"data": [{"name": "rows.jsonl", "sha256": "a" * 64}], "validation": False},
        {"data": [], "validation": True},
        {"data": [{"name": "rows.jsonl", "sha256": None}, "a", None]},
        {"origin": {"repository": "org/name"}},
        None,
    ]
    with sqlite3.connect(home.database) as database:
        database.execute("INSERT INTO adapters VALUES ('a/b', 6, 0)")
        for number, manifest in enumerate(manifests, 1):
            values = [number, json.dumps(manifest)]
            database.execute("INSERT INTO versions VALUES ('a/b', ?, 'd', 'tiny', 'b', 'lora', ?, '{}', 0)", values)
    database.close()
    with Registry.open(home) as registry:
        assert [(use.number, use.role) for use in registry.uses("a" * 64)] == [(1, "train"), (2, "train")]
        assert [(use.number, use.role) for use in registry.uses("b" * 64)] == [(1, "held-out")]
        registry.remove("a/b@1", actor="t")
        assert registry.uses("b" * 64) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "statement", ["CREATE TABLE jobs", "CREATE TABLE version_data", "ALTER TABLE", "UPDATE alembic_version"]
)
def test_a_process_killed_while_migrating_leaves_the_old_tables(home: Home, statement: str) -> None:
    at_revision(home, "0001")
    if statement == "CREATE TABLE jobs":
        home.database.unlink()
    killed = subprocess.run([sys.executable, "-c", "import sys\n" + DIE + OPEN, str(home.root), statement], timeout=60)
    assert killed.returncode == -signal.SIGKILL
    with Registry.open(home) as registry:
        assert registry.versions() == []


@pytest.mark.slow
@pytest.mark.parametrize("revision", [None, "0001"])
def test_processes_that_open_a_home_at_once_migrate_it_once(home: Home, revision: str | None) -> None:
    if revision:
        at_revision(home, revision)
    processes = [subprocess.Popen([sys.executable, "-c", OPEN, str(home.root)]) for _ in range(6)]
    assert [process.wait(timeout=60) for process in processes] == [0] * 6
    with Registry.open(home) as registry:
        assert registry.versions() == []


@pytest.mark.slow
def test_processes_that_make_new_databases_at_once_wait_for_each_other(tmp_path: Path) -> None:
    making = (
        "import sys; from pathlib import Path; from tunery.registry.storage.database import Database; sys.stdin.readline()\n"
        "for number in range(30): Database(Path(sys.argv[1]) / f'{number}.db').close()"
    )
    command = [sys.executable, "-c", making, str(tmp_path)]
    makers = [subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    for maker in makers:
        assert maker.stdin is not None
        maker.stdin.write("\n")
        maker.stdin.flush()
    errors = [maker.communicate()[1] for maker in makers]
    assert [maker.returncode for maker in makers] == [0] * 4, errors
