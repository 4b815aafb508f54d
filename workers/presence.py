"""Which workers of this machine are alive: each holds the lock of a file of its own, and a lock ends with its process.

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
            self.folder = make_folder(database_id) / "workers"
            self.folder.mkdir(mode=0o700, exist_ok=True)
        except (QueueError, OSError) as error:
            logger.warning("jobs of killed workers come back only when their leases run out: %s", error)

    def announce(self, name: str) -> int | None:
        """Hold this worker's lock and return its descriptor."""
        path = self._path(name)
        return try_lock(path) if path else None

    def leave(self, name: str, lock: int | None) -> None:
        """Give this worker's lock back."""
        path = self._path(name)
        if path and lock is not None:
            path.unlink(missing_ok=True)
            os.close(lock)

    def is_dead(self, name: str) -> bool:
        """Say whether a worker was here and is gone; False when nothing is known of it."""
        path = self._path(name)
        return path is not None and path.exists() and not is_locked(path)

    def sweep(self) -> None:
        """Remove what dead workers have left, once their jobs have been rescued."""
        for path in self.folder.glob("*.lock") if self.folder and self.folder.is_dir() else ():
            if not is_locked(path):
                path.unlink(missing_ok=True)

    def _path(self, name: str) -> Path | None:
        # A digest, since the name comes from Redis and could be any text.
        digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:32]
        return self.folder / f"{digest}.lock" if self.folder and self.folder.is_dir() else None
