"""Text that every database can hold."""

import re

# PostgreSQL refuses U+0000, SQLite's tools end a text there; a lone surrogate has no UTF-8.
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def clean(text: str) -> str:
    """Replace U+0000 and lone surrogates by U+FFFD; all else stays as it is."""
    return _UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", text)
