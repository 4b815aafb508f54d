"""The seeds of rows, derived from the seed of their run. A rule for ever: recorded runs are replayed by it."""

import hashlib
import secrets

from store.records import SEED_LIMIT


def row_seed(run_seed: int, position: int) -> int:
    """Derive the seed of a row, below 2**53: the same whatever the batch, the order or the interruptions."""
    digest = hashlib.sha256(f"{run_seed}:{position}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % SEED_LIMIT


def draw_seed() -> int:
    """Draw a seed for a run that was given none, below 2**53."""
    return secrets.randbelow(SEED_LIMIT)
