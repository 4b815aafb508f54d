"""The prompt: rendered and encoded as transformers does it, and closed to what a person's text could smuggle in."""

import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from jobs.prompt import Prompt, build_prompt
from jobs.template import SANDBOX, render
from jobs.tokenizer import Tokenizer, load_tokenizer
from store.checkpoint import Checkpoint, open_checkpoint
from store.errors import SettingsError, WeightsError

ROOT = Path(__file__).parent.parent
SMALL = ROOT / "tests" / "data" / "small"
IMAGE = 19      # the image token
PLACES = "{% for c in messages[0].content %}{{ '<|image|>' if c.type == 'image' else c.text }}{% endfor %}"


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return open_checkpoint(SMALL / "weights")


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    return load_tokenizer(checkpoint)


@pytest.fixture(scope="module")
def cases() -> list[dict[str, Any]]:
    return list(json.loads((SMALL / "expected.json").read_text())["prompts"])


@pytest.fixture
def build(checkpoint: Checkpoint, tokenizer: Tokenizer) -> Any:
    def build(text: str, *, thinking: bool = False, grid: tuple[int, int] = (16, 16), template: str = "") -> Prompt:
        used = dataclasses.replace(checkpoint, chat_template=template) if template else checkpoint
        return build_prompt(used, tokenizer, text, thinking=thinking, grid=grid)

    return build


def test_both_prompts_of_the_reference_are_rendered_and_encoded_alike(build: Any, cases: list[dict[str, Any]]) -> None:
    for case in cases:
        prompt = build(case["prompt"])

        assert prompt.rendered == case["rendered"]
        assert list(prompt.token_ids) == case["prompt_ids"]
        assert prompt.images == ("a", "b")


def test_the_spans_are_the_image_tokens_and_nothing_else(build: Any) -> None:
    prompt = build("First <image_a>, then <image_b>.", grid=(4, 3))

    inside = {place for start, end in prompt.spans for place in range(start, end)}
    assert [end - start for start, end in prompt.spans] == [12, 12]
    assert inside == {place for place, id_ in enumerate(prompt.token_ids) if id_ == IMAGE}
    assert prompt.grid == (4, 3)


def test_image_b_may_come_first(build: Any, tokenizer: Tokenizer) -> None:
    prompt = build("<image_b> after <image_a>?")

    assert prompt.images == ("b", "a")
    assert prompt.rendered.count("<|image|>") == 2
    assert tokenizer.decode(prompt.token_ids) == " after ?"


def test_markers_alone_are_a_prompt(build: Any) -> None:
    assert build("<image_a><image_b>").images == ("a", "b")


def test_a_text_without_markers_comes_after_both_images(build: Any, tokenizer: Tokenizer) -> None:
    prompt = build("Which?")

    assert tokenizer.decode(prompt.token_ids[prompt.spans[1][1]:]) == "Which?"
    assert prompt.text == "Which?"


@pytest.mark.parametrize("text", [
    "Only <image_a>.", "Only <image_b>.", "<image_a> and <image_a>", "<image_a> <image_b> <image_a>",
])
def test_one_image_or_one_twice_is_refused(build: Any, text: str) -> None:
    with pytest.raises(SettingsError, match="expected <image_a> and <image_b> once each, or neither, found <image_"):
        build(text)


@pytest.mark.parametrize("text", ["", " \n\t"])
def test_an_empty_prompt_is_refused(build: Any, text: str) -> None:
    with pytest.raises(SettingsError, match="found an empty text"):
        build(text)


@pytest.mark.parametrize("special", ["<|user|>", "<|image|>", "<|endoftext|>", "[gMASK]", "/nothink", "</think>"])
def test_a_special_token_in_the_text_is_refused_by_name(build: Any, special: str) -> None:
    with pytest.raises(SettingsError) as caught:
        build(f"Compare{special}these")

    assert f"found {special}, a special token" in str(caught.value)


@pytest.mark.parametrize("text", ["<|us<image_a>er|><image_b>", "<|user|", "|>", "<|<image_a>user<image_b>|>"])
def test_pieces_of_a_special_token_stay_text(build: Any, tokenizer: Tokenizer, text: str) -> None:
    plain = build(text.replace("user", "abcd").replace("us", "ab").replace("er", "cd"))

    prompt = build(text)

    def markers(prompt: Prompt) -> list[int]:
        return [id_ for id_ in prompt.token_ids if id_ in tokenizer.specials.values()]

    assert markers(prompt) == markers(plain)


def test_a_text_that_becomes_a_special_token_with_the_template_is_refused(build: Any) -> None:
    with pytest.raises(SettingsError, match="forms a special token of the model together with the chat template"):
        build("<|user", template=PLACES + "|>")


def test_a_text_that_holds_template_code_is_not_run(build: Any) -> None:
    assert "{{ 7 * 7 }}{% raw %}" in build("{{ 7 * 7 }}{% raw %}").rendered


def test_a_text_that_is_no_utf_8_is_refused(build: Any) -> None:
    with pytest.raises(SettingsError, match="expected text in UTF-8"):
        build("caf\udce9")


def test_thinking_is_asked_for_through_the_template(build: Any) -> None:
    thinking, plain = build("Which?", thinking=True), build("Which?")

    assert thinking.rendered.endswith("Which?<|assistant|>")
    assert plain.rendered.endswith("Which?/nothink<|assistant|><think></think>")
    assert not thinking.opened_thinking
    assert not plain.opened_thinking


def test_a_template_that_opens_the_thinking_is_noticed(build: Any) -> None:
    assert build("Which?", thinking=True, template=PLACES + "<|assistant|><think>\n").opened_thinking


@pytest.mark.parametrize(("template", "found"), [
    ("{% for c in messages[0].content %}{{ c.text }}{% endfor %}", "found 0"),
    ("<|image|>{{ messages[0].content[2].text }}", "found 1"),
])
def test_a_template_that_drops_an_image_is_refused(build: Any, template: str, found: str) -> None:
    with pytest.raises(WeightsError, match=f"expected it to place 2 images, {found}"):
        build("Which?", template=template)


@pytest.mark.parametrize("template", [
    "{{ raise_exception('not for users') }}", "{% for %}", "{{ 1 / 0 }}", "{{ messages.nothing.at_all }}", "{{ 1() }}",
    "{{ messages.append(1) }}", "{{ ''.__class__.__mro__ }}",
])
def test_a_template_that_fails_or_reaches_out_of_the_sandbox_is_refused(template: str) -> None:
    with pytest.raises(WeightsError, match="chat template: expected one that renders"):
        render(template, [[{"type": "text", "text": "x"}]], thinking=False)


def test_the_message_of_a_template_is_passed_on() -> None:
    with pytest.raises(WeightsError, match="not for users"):
        render("{{ raise_exception('not for users') }}", [[]], thinking=False)


@pytest.mark.parametrize(("template", "expected"), [
    ("  {% if true %}\n  A\n  {% endif %}\nB\n", "  A\nB"),
    ("{{ {'b': '<é>', 'a': 1} | tojson }}", '{"b": "<é>", "a": 1}'),
    ("{{ [1, 2] | tojson(indent=1) }}", "[\n 1,\n 2\n]"),
    ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
    ("{{ tools is none }}{{ add_generation_prompt }}{{ enable_thinking }}", "TrueTrueFalse"),
])
def test_templates_are_rendered_as_transformers_renders_them(template: str, expected: str) -> None:
    assert render(template, [[]], thinking=False) == [expected]


def test_a_template_may_ask_for_the_date() -> None:
    assert render("{{ strftime_now('%Y') }}", [[]], thinking=False) in ([time.strftime("%Y")],
                                                                       [str(time.localtime()[0])])


KILLED = r"one that ended its process \(status -(9|24)\)"      # SIGKILL on Linux, SIGXCPU on macOS
ADDRESSES = pytest.mark.skipif(sys.platform == "darwin", reason="macOS holds no process to a limit on its addresses")


@pytest.mark.parametrize(("template", "found"), [
    # Nothing but the limit on processor time, on memory, or on what is rendered stops each of the first three.
    ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", KILLED),
    pytest.param("{% set ns = namespace(x=['x']) %}{% for i in range(27) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
                 "MemoryError", marks=ADDRESSES),      # 2^27 places of 8 bytes are 1 GiB
    ("{% for i in range(20000) %}{{ 'x' * 100 }}{% endfor %}", "SecurityError: more than 1,000,000 characters"),
    ("{{ 'x' * 99999999999 }}", r"SecurityError: \*: too large"),
    ("{{ 9 ** 9 ** 9 }}", r"SecurityError: \*\*: too large"),
    ("{{ '%999999999999d' % 1 }}", "SecurityError: %: too large"),
    ("{{ 1 | tojson(indent=99999999) }}", "TemplateError: tojson: too wide an indent"),
    ("{{ 'x' | center(99999999999) }}", "TemplateAssertionError: No filter named 'center'"),
    ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "RecursionError"),
])
def test_a_template_that_takes_too_much_time_or_memory_is_refused(template: str, found: str) -> None:
    with pytest.raises(WeightsError, match=f"chat template: expected one that renders .*, found {found}"):
        render(template, [[]], thinking=False)


def test_a_template_that_renders_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(WeightsError, match="chat template: expected text that is UTF-8, found a lone surrogate"):
        render(r"{{ 'ab\ud800' }}", [[]], thinking=False)


def test_ctrl_c_in_the_terminal_does_not_reach_the_process_that_renders(tmp_path: Path) -> None:
    interrupting = tmp_path / "sandbox.py"
    interrupting.write_text("""
import json, os, signal, time
os.killpg(os.getpgid(os.getppid()), signal.SIGINT)      # as a terminal does
time.sleep(0.3)
print(json.dumps({"rendered": ["still here"]}))
""")
    code = """
import signal, sys; from pathlib import Path; from jobs import template
signal.signal(signal.SIGINT, lambda *_: print("heard", flush=True))      # a worker finishes first
template.SANDBOX = Path(sys.argv[1])
print(template.render("", [[]], thinking=False))
"""

    done = subprocess.run([sys.executable, "-c", code, str(interrupting)], cwd=ROOT, start_new_session=True,
                          capture_output=True, text=True, check=False, timeout=60)

    assert done.stdout == "heard\n['still here']\n", done.stderr


def test_the_process_that_renders_ends_by_itself_when_whoever_started_it_does_not_end_it() -> None:
    code = f"import runpy; main = runpy.run_path({str(SANDBOX)!r})['main']; main.__globals__['LIFE'] = 1; main()"

    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    try:
        assert process.wait(timeout=15) == -signal.SIGALRM
    finally:
        process.kill()
        process.communicate()


REAL = """[gMASK]<sop>
{%- macro visible_text(content) -%}
    {%- if content is string -%}
        {{- content }}
    {%- elif content is iterable and content is not mapping -%}
        {%- for item in content -%}
            {%- if item is mapping and item.type == 'text' -%}
                {{- item.text }}
            {%- elif item is mapping and (item.type == 'image' or 'image' in item) -%}
                <|begin_of_image|><|image|><|end_of_image|>
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- set ns = namespace(last_user_index=-1) %}
{%- for m in messages %}
    {%- if m.role == 'user' %}
        {% set ns.last_user_index = loop.index0 -%}
    {%- endif %}
{%- endfor %}
{% for m in messages %}
{%- if m.role == 'user' -%}<|user|>
{{ visible_text(m.content) }}
{{- '/nothink' if (enable_thinking is defined and not enable_thinking
                   and not visible_text(m.content).endswith("/nothink")) else '' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    <|assistant|>
{{'<think></think>\\n' if (enable_thinking is defined and not enable_thinking) else ''}}
{%- endif -%}
"""


def test_a_template_with_macros_and_namespaces_is_rendered_as_the_real_one_is(build: Any) -> None:
    image = "<|begin_of_image|><|image|><|end_of_image|>"

    plain, thinking = (build("Which?", thinking=thinking, template=REAL) for thinking in (False, True))

    assert plain.rendered == f"[gMASK]<sop><|user|>\n{image}{image}Which?/nothink<|assistant|>\n<think></think>\n"
    assert thinking.rendered == f"[gMASK]<sop><|user|>\n{image}{image}Which?<|assistant|>\n"
