"""The process that a chat template is rendered in. It is run as a script, and knows of diptych nothing at all.

A template is a program that a stranger wrote. jinja2's immutable sandbox keeps it from files and from Python; limits on
processor time, memory and output keep it from the machine.
"""

import contextlib
import datetime
import json
import resource
import signal
import sys
from typing import Any, NoReturn

from jinja2.exceptions import SecurityError, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS = 5               # of processor time
LIFE = 20                 # seconds of wall time, for whoever started it may be gone
MEMORY = 2**30            # bytes of addresses; macOS does not hold a process to them
LARGEST = 1_000_000       # characters of what is rendered, or of what an operator makes


class Environment(ImmutableSandboxedEnvironment):
    """The sandbox, whose operators make nothing that is too large."""

    intercepted_binops = frozenset(["*", "**", "%"])

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Compute what has a bounded size; raise SecurityError for all else."""
        sized = [value for value in (left, right) if hasattr(value, "__len__")]
        if operator == "*" and sized:
            count = right if sized[0] is left else left
            allowed = isinstance(count, int) and len(sized[0]) * count <= LARGEST
        elif operator == "%":
            allowed = not sized      # of text it is a format, which can ask for any width
        else:
            allowed = operator == "*" or (abs(left) <= LARGEST and abs(right) <= 100)
        if not allowed:
            raise SecurityError(f"{operator}: too large")
        return super().call_binop(context, operator, left, right)


def make_environment() -> Environment:
    """Make the sandbox with what transformers gives a template."""
    environment = Environment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    for wide in ("center", "format", "indent", "wordwrap"):      # no chat template pads; each can ask for any width
        del environment.filters[wide]
    return environment


def to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None,
            separators: tuple[str, str] | None = None, sort_keys: bool = False) -> str:
    """Write JSON for a model, not for HTML: jinja2's own filter would escape <, > and &."""
    if indent is not None and indent > 16:
        raise TemplateError("tojson: too wide an indent")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message: str) -> NoReturn:
    """Let a template refuse what it is given."""
    raise TemplateError(message)


def strftime_now(pattern: str) -> str:
    """Return the time of day in a form."""
    return datetime.datetime.now().astimezone().strftime(pattern)


def render(template: str, variables: dict[str, Any]) -> str:
    """Render a template; raise SecurityError as soon as it is too long."""
    parts, length = [], 0
    for part in make_environment().from_string(template).generate(variables):
        length += len(part)
        if length > LARGEST:
            raise SecurityError(f"more than {LARGEST:,} characters")
        parts.append(part)
    return "".join(parts)


def limit() -> None:
    """Hold this process to its limits, as far as the system does."""
    for kind, most in ((resource.RLIMIT_CPU, SECONDS), (resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_CORE, 0)):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (most, most))


def main() -> None:
    """Read a template and lists of variables as JSON, write what is rendered with each, or the error."""
    signal.alarm(LIFE)
    request = json.load(sys.stdin)
    limit()
    try:
        answer: dict[str, Any] = {"rendered": [render(request["template"], each) for each in request["variables"]]}
    except Exception as error:      # a template can divide by zero, recurse, call a number
        answer = {"error": f"{type(error).__name__}: {error}"[:1000]}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
