"""The time of day, as the database writes it."""

from datetime import UTC, datetime


def now() -> str:
    """Return the present as ISO 8601 UTC with milliseconds: `2026-01-31T23:59:59.000Z`."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"
