"""Desired state and what is needed to find running engines again, in SQLite.

Every write is on the disk when its call returns. SQLite blocks, so one thread of its own does the work.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from byzerllm.errors import DeploymentFailed, InvalidInput
from byzerllm.runtime.base import EngineProcess
from byzerllm.spec import DeploymentSpec

T = TypeVar("T")

log = logging.getLogger(__name__)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS deployments (
    name TEXT PRIMARY KEY, spec BLOB NOT NULL, generation INTEGER NOT NULL, created_at REAL NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS engines (
    worker_id TEXT PRIMARY KEY, deployment TEXT NOT NULL, worker_index INTEGER NOT NULL, generation INTEGER NOT NULL,
    process BLOB NOT NULL) STRICT;
"""


class SavedDeployment(msgspec.Struct, frozen=True):
    """A row of desired state. ``generation`` grows with every change of the spec; ``created_at`` is Unix time."""

    spec: DeploymentSpec
    generation: int
    created_at: float


class SavedEngine(msgspec.Struct, frozen=True):
    """An engine process that was started for a worker and not yet stopped."""

    deployment: str
    index: int
    generation: int
    process: EngineProcess


class Store:
    """The server's durable memory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._db: sqlite3.Connection | None = None

    async def open(self) -> None:
        """Open or create the file.

        Raises:
            InvalidInput: it cannot be written, or is no database.
        """
        try:
            await self._run(self._open)
        except sqlite3.Error as error:
            raise InvalidInput(
                f"The state file {self._path} cannot be used: {error}.",
                hint="Set BYZERLLM_HOME to a folder that can be written, or move the file away.",
            ) from None

    def _open(self) -> None:
        self._db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.executescript(_SCHEMA)
        self._path.chmod(0o600)

    async def close(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            await self._run(db.close)
        self._thread.shutdown(wait=False)

    async def save(self, saved: SavedDeployment) -> None:
        """Write an instance's desired state; replaces what was there."""
        row = (saved.spec.name, msgspec.json.encode(saved.spec), saved.generation, saved.created_at)
        await self._execute("INSERT OR REPLACE INTO deployments VALUES (?, ?, ?, ?)", row)

    async def delete(self, name: str) -> None:
        await self._execute("DELETE FROM deployments WHERE name = ?", (name,))

    async def load(self) -> list[SavedDeployment]:
        """Every instance that ought to be there, by name."""
        rows = await self._query("SELECT spec, generation, created_at, name FROM deployments ORDER BY name")
        found: list[SavedDeployment] = []
        for spec, generation, created_at, name in rows:
            try:
                found.append(SavedDeployment(msgspec.json.decode(spec, type=DeploymentSpec), generation, created_at))
            except msgspec.DecodeError as error:  # written by a newer version; it stays in the file
                log.error("%s was saved in a form that this version cannot read: %s", name, error)
        return found

    async def save_engine(self, engine: SavedEngine) -> None:
        row = (
            engine.process.worker_id,
            engine.deployment,
            engine.index,
            engine.generation,
            msgspec.json.encode(engine.process),
        )
        await self._execute("INSERT OR REPLACE INTO engines VALUES (?, ?, ?, ?, ?)", row)

    async def delete_engine(self, worker_id: str) -> None:
        await self._execute("DELETE FROM engines WHERE worker_id = ?", (worker_id,))

    async def load_engines(self) -> list[SavedEngine]:
        """Every engine process that was not stopped in order; it may have died since."""
        rows = await self._query("SELECT deployment, worker_index, generation, process FROM engines ORDER BY worker_id")
        return [SavedEngine(r[0], r[1], r[2], msgspec.json.decode(r[3], type=EngineProcess)) for r in rows]

    async def _execute(self, sql: str, row: tuple[Any, ...]) -> None:
        try:
            await self._run(lambda: self._connection().execute(sql, row))
        except sqlite3.Error as error:
            raise DeploymentFailed(f"The state file {self._path} cannot be written: {error}.") from None

    async def _query(self, sql: str) -> list[tuple[Any, ...]]:
        return await self._run(lambda: self._connection().execute(sql).fetchall())

    def _connection(self) -> sqlite3.Connection:
        assert self._db is not None, "the store is not open"
        return self._db

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
