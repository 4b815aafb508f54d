"""JSON on one line, in UTF-8, for other programs. What would drive a terminal is written as an escape."""

import json
import re
from collections.abc import Mapping
from typing import Any

# DEL and the C1 controls, line and paragraph separators, and what turns the direction of a text; JSON escapes the rest.
_DRIVING = re.compile("[\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def json_line(values: Mapping[str, Any]) -> str:
    """Return a JSON object without a newline at its end; a parser reads every text exactly as it was."""
    return _DRIVING.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(values, ensure_ascii=False))
