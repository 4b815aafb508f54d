"""What a slice of a run may hold at once."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Say how many rows, tokens of a prefill chunk and bytes of prefixes may be held at once."""

    rows: int
    """The most rows side by side."""
    chunk_tokens: int
    """The most tokens of one prefill chunk, over all its rows."""
    prefix_bytes: int
    """The bytes of prefixes kept from job to job; 0: rows share nothing."""
