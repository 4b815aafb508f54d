"""The hashes of files, kept in the database, so that each weight file is read once."""

import os
from pathlib import Path

from sqlalchemy import select

from store.database import Database
from store.schema import fingerprints, insert_into


class DatabaseCache:
    """A FingerprintCache: one hash a path, valid while the file's size, time and inode are the same."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._known: dict[tuple[Path, int, int, int], str] = {}      # what was found once

    def get(self, path: Path, stat: os.stat_result) -> str | None:
        """Return the hash that was put for this file as it is now."""
        file = path, stat.st_size, stat.st_mtime_ns, stat.st_ino
        if file not in self._known and (sha256 := self._read(path, stat)) is not None:
            self._known[file] = sha256
        return self._known.get(file)

    def _read(self, path: Path, stat: os.stat_result) -> str | None:
        kept = fingerprints.c
        found = select(kept.sha256).where(
            kept.path == str(path), kept.size == stat.st_size, kept.mtime_ns == stat.st_mtime_ns,
            kept.inode == str(stat.st_ino),
        )
        with self._db.read() as connection:
            sha256: str | None = connection.scalar(found)
        return sha256

    def put(self, path: Path, stat: os.stat_result, sha256: str) -> None:
        """Keep the hash of a file, in the place of an older one."""
        columns = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "inode": str(stat.st_ino), "sha256": sha256}
        with self._db.write() as connection:
            row = insert_into(connection, fingerprints).values(path=str(path), **columns)
            connection.execute(row.on_conflict_do_update(index_elements=["path"], set_=columns))
