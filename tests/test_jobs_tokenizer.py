"""The tokenizer: text and ids as the reference has them, and text that streams without breaking a character."""

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from jobs.tokenizer import Tokenizer, load_tokenizer
from store.checkpoint import Checkpoint, open_checkpoint
from store.errors import WeightsError

SMALL = Path(__file__).parent / "data" / "small"
THINK, END_THINK, BOX, NOTHINK, EOS = 14, 15, 17, 16, 195


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return open_checkpoint(SMALL / "weights")


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    return load_tokenizer(checkpoint)


@pytest.fixture(scope="module")
def cases() -> list[dict[str, Any]]:
    return list(json.loads((SMALL / "expected.json").read_text())["prompts"])


def streamed(tokenizer: Tokenizer, ids: list[int], *, opened_thinking: bool = False) -> str:
    stream = tokenizer.stream(opened_thinking=opened_thinking)
    return "".join(stream.add(id_) for id_ in ids) + stream.end()


def test_the_texts_of_the_reference_come_out_of_its_tokens(tokenizer: Tokenizer, cases: list[dict[str, Any]]) -> None:
    for case in cases:
        answers = [tokenizer.split(ids, opened_thinking=False) for ids in case["greedy_token_ids"]]

        assert [answer.text for answer in answers] == case["greedy_text"]
        assert {answer.thinking for answer in answers} == {""}


def test_any_tokens_decode_as_the_tokenizers_package_decodes_them(tokenizer: Tokenizer) -> None:
    package = tokenizers.Tokenizer.from_file(str(SMALL / "weights" / "tokenizer.json"))
    markers = set(tokenizer.specials.values()) | {0, 7, 9, EOS}
    plain = [id_ for id_ in range(480) if id_ not in markers]
    draw = random.Random(0)

    for _ in range(1000):
        ids = draw.choices(plain, k=draw.randint(0, 30))
        assert tokenizer.decode(ids) == package.decode(ids) == streamed(tokenizer, ids)


def test_a_character_of_several_tokens_is_held_back_until_it_is_complete(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("é😀!")
    stream = tokenizer.stream()

    pieces = [stream.add(id_) for id_ in ids]

    assert len(ids) == 7
    assert pieces == ["", "é", "", "", "", "😀", "!"]
    assert stream.end() == ""


def test_a_character_that_is_never_completed_ends_as_a_replacement(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a😀")[:-1]

    assert streamed(tokenizer, ids) == tokenizer.decode(ids) == "a�"


def test_text_encodes_and_decodes_to_itself(tokenizer: Tokenizer) -> None:
    text = "Which is sharper?\n\tFör “one”, 図 2 — or\u0000 both 🦊"

    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_markers_are_single_tokens_when_rendered_and_never_become_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("[gMASK]<sop>box <|begin_of_box|>A<|end_of_box|>/nothink")

    assert [id_ for id_ in ids if id_ in tokenizer.specials.values()] == [2, 4, 17, 18, 16]
    assert tokenizer.decode(ids) == "box A"


def test_markers_that_are_not_flagged_special_never_become_text_either(checkpoint: Checkpoint, tmp_path: Path) -> None:
    values = json.loads(checkpoint.tokenizer_file.read_text())
    for token in values["added_tokens"]:
        token["special"] = False
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(values))

    tokenizer = load_tokenizer(dataclasses.replace(checkpoint, tokenizer_file=file))

    assert tokenizer.decode([THINK, *tokenizer.encode("A"), NOTHINK]) == "A"


def test_an_id_beyond_the_tokenizer_is_no_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode([*tokenizer.encode("A"), 100_000]) == "A"


@pytest.mark.parametrize(("opened", "parts", "text", "thinking"), [
    (False, [THINK, "why", END_THINK, "\nA"], "A", "why"),
    (True, ["why", END_THINK, "A"], "A", "why"),
    (True, ["\nwhy\n", END_THINK, "\n\n", "A\n", EOS], "A\n", "why"),
    (True, ["never ends"], "", "never ends"),
    (False, ["\n", THINK, "never ends"], "", "never ends"),
    (False, [THINK, "why", "\n"], "", "why"),
    (False, ["\n\n"], "\n\n", ""),
    (False, [THINK, END_THINK, "\nA"], "A", ""),
    (False, ["\nA"], "\nA", ""),
    (False, ["A", THINK, "b", END_THINK, "C"], "AC", "b"),
    (False, ["A", END_THINK, "\nB"], "A\nB", ""),
    (True, ["why", END_THINK, BOX, "A", 18], "A", "why"),
    (False, [], "", ""),
])
def test_thinking_is_told_apart_from_the_answer(
    tokenizer: Tokenizer, opened: bool, parts: list[str | int], text: str, thinking: str,
) -> None:
    ids = [id_ for part in parts for id_ in (tokenizer.encode(part) if isinstance(part, str) else [part])]

    answer = tokenizer.split(ids, opened_thinking=opened)

    assert (answer.text, answer.thinking) == (text, thinking)
    assert streamed(tokenizer, ids, opened_thinking=opened) == text


def test_a_checkpoint_without_thinking_markers_only_answers(checkpoint: Checkpoint, tmp_path: Path) -> None:
    values = json.loads(checkpoint.tokenizer_file.read_text())
    for token in values["added_tokens"]:
        token["content"] = token["content"].replace("think>", "thought>")
    values["model"]["vocab"] = {k.replace("think>", "thought>"): v for k, v in values["model"]["vocab"].items()}
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(values))
    tokenizer = load_tokenizer(dataclasses.replace(checkpoint, tokenizer_file=file))

    assert tokenizer.split(tokenizer.encode("a<think>b"), opened_thinking=False).text == "a<think>b"


@pytest.mark.parametrize(("content", "expected"), [
    ("{", "expected a tokenizer, found"),
    ('{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}', "expected a byte-level"),
])
def test_a_damaged_tokenizer_is_refused(checkpoint: Checkpoint, tmp_path: Path, content: str, expected: str) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text(content)

    with pytest.raises(WeightsError, match=expected):
        load_tokenizer(dataclasses.replace(checkpoint, tokenizer_file=file))


def test_an_image_token_that_the_tokenizer_lacks_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(WeightsError, match=r"expected a token with config\.json's image_token_id 5000"):
        load_tokenizer(dataclasses.replace(checkpoint, image_token_id=5000))
