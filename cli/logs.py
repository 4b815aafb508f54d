"""Log lines on stderr, for people or, with --log-format json, for machines."""

import logging
import sys
from datetime import UTC, datetime

from cli.show import escape
from store.jsonlines import json_line


class _Stderr(logging.Handler):
    """Writes to what sys.stderr is now: a progress bar puts itself in between for a while."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        sys.stderr.write(self.format(record) + "\n")
        sys.stderr.flush()


class _Lines(logging.Formatter):
    """A line for people, which cannot drive their terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return escape(super().format(record))


class _JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and the fields of `extra={"fields": ...}`."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = {"time": time, "level": record.levelname.lower(), "logger": record.name, "message": record.getMessage()}
        return json_line(line | getattr(record, "fields", {}))


def set_up_logging(form: str, *, quiet: bool) -> None:
    """Send diptych's log lines to stderr in the given form; with quiet only errors."""
    handler = _Stderr()
    handler.setFormatter(_JsonLines() if form == "json" else _Lines("%(asctime)s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("diptych")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.ERROR if quiet else logging.INFO)
    logger.propagate = False
