"""Which workers of this machine are gone: each holds the lock of a file of its own, and a lock ends with its process.

Of other machines' workers it knows nothing; their leases run out.
"""

import hashlib
import logging
import os
from pathlib import Path

from jobs.server import make_folder
from jobs.watcher import is_locked, try_lock
from store.errors import QueueError

logger = logging.getLogger("diptych.worker")


class Presence:
    """The lock files of a database's workers on this machine."""

    def __init__(self, database_id: str) -> None:
        self.folder: Path | None = None
        try:
            folder = make_folder(database_id) / "workers"
            folder.mkdir(mode=0o700, exist_ok=True)
            self.folder = folder
        except (QueueError, OSError) as error:
            logger.warning("jobs of killed workers come back only when their leases run out: %s", error)

    def announce(self, name: str) -> int | None:
        """Hold a worker's lock until its process ends, and return the descriptor; None where there are no files."""
        path = self.file_of(name)
        while path and path.parent.is_dir():
            lock = try_lock(path)
            if lock is not None and is_file(path, lock):
                return lock
            if lock is not None:
                os.close(lock)      # another worker has removed the file in the moment before it was locked
        return None

    def find_gone(self) -> set[Path]:
        """Find the files of workers that are gone."""
        return {path for path in self.folder.glob("*.lock") if not is_locked(path)} if self.folder else set()

    def forget(self, gone: set[Path]) -> None:
        """Remove files of workers that are gone, once their jobs have been put back."""
        for path in gone:
            if path.exists() and (lock := try_lock(path)) is not None:
                path.unlink(missing_ok=True)
                os.close(lock)

    def file_of(self, name: str) -> Path | None:
        """Name a worker's file: by a digest, since names are read from Redis and could be any text."""
        digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:32]
        return self.folder / f"{digest}.lock" if self.folder else None


def is_file(path: Path, descriptor: int) -> bool:
    """Say whether an open file is still the one of this name."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
