"""A checkpoint's chat template, rendered in jinja2's sandbox as transformers renders it."""

import datetime
import json
from typing import Any, NoReturn

from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from store.errors import WeightsError


def render(template: str, content: list[dict[str, str]], *, thinking: bool) -> str:
    """Render one user message, up to where the model answers; raise WeightsError for a template that does not.

    `content` is a list of {"type": "image"} and {"type": "text", "text": ...}.
    """
    messages = [{"role": "user", "content": content}]
    try:
        return _environment().from_string(template).render(
            messages=messages, tools=None, documents=None, add_generation_prompt=True, enable_thinking=thinking,
        )
    except Exception as error:      # a template is a program: it can divide by zero, recurse, call a number
        raise WeightsError(f"chat template: expected one that renders a user message with two images, found "
                           f"{type(error).__name__}: {error}; download the checkpoint again") from None


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None,
             separators: tuple[str, str] | None = None, sort_keys: bool = False) -> str:
    """Write JSON for a model, not for HTML: jinja2's own filter would escape <, > and &."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().astimezone().strftime(pattern)
