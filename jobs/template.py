"""A checkpoint's chat template, rendered as transformers renders it, in a process of its own with limits."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from store.errors import WeightsError

SANDBOX = Path(__file__).with_name("sandbox.py")
SECONDS = 20      # of wall time; the process itself has less of processor time

Content = list[dict[str, str]]      # of a message: {"type": "image"} and {"type": "text", "text": ...}


def render(template: str, contents: Sequence[Content], *, thinking: bool) -> list[str]:
    """Render one user message of each content, up to where the model answers.

    Raises WeightsError for a template that does not, takes too long, or makes too much or no UTF-8.
    """
    variables = [{"messages": [{"role": "user", "content": content}], "tools": None, "documents": None,
                  "add_generation_prompt": True, "enable_thinking": thinking} for content in contents]
    answer = _ask({"template": template, "variables": variables})
    if "error" in answer:
        raise _refused(answer["error"])
    rendered: list[str] = answer["rendered"]
    for text in rendered:
        _check_text(text)
    return rendered


def _ask(request: dict[str, Any]) -> dict[str, Any]:
    try:
        # -I: nothing from the folder or the environment of whoever runs it becomes a module there.
        # In a session of its own a terminal's Ctrl-C does not reach it.
        done = subprocess.run([sys.executable, "-I", str(SANDBOX)], input=json.dumps(request), capture_output=True,
                              encoding="utf-8", timeout=SECONDS, check=False, start_new_session=True)
    except subprocess.TimeoutExpired:
        raise _refused(f"one that takes more than {SECONDS} s") from None
    if done.returncode:
        raise _refused(f"one that ended its process (status {done.returncode}): it took too much time or memory")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise WeightsError("chat template: expected text that is UTF-8, found a lone surrogate at character "
                           f"{error.start:,}; download the checkpoint again") from None


def _refused(found: str) -> WeightsError:
    return WeightsError("chat template: expected one that renders a user message with two images, found "
                        f"{found}; download the checkpoint again")
