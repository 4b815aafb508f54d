"""A run's prompt: what the person wrote, through the chat template, as token ids with room for two images."""

import re
from dataclasses import dataclass
from typing import Literal

from jobs.template import Content, render
from jobs.tokenizer import END_THINK, THINK, Tokenizer
from store.checkpoint import Checkpoint
from store.errors import SettingsError, WeightsError

Image = Literal["a", "b"]

MARKERS: dict[str, Image] = {"<image_a>": "a", "<image_b>": "b"}


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt that every pair of a run shares; only the images' embeddings differ."""

    text: str                      # as the person gave it
    thinking: bool
    rendered: str                  # by the template, each image as one token
    token_ids: tuple[int, ...]     # the image token repeated, once an embedding
    images: tuple[Image, Image]    # in the order of their appearance
    spans: tuple[tuple[int, int], tuple[int, int]]      # [start, end) of the two image blocks in token_ids
    grid: tuple[int, int]          # rows and columns of an image's embeddings
    opened_thinking: bool          # the template ends inside of the thinking


def build_prompt(
    checkpoint: Checkpoint, tokenizer: Tokenizer, text: str, *, thinking: bool, grid: tuple[int, int],
) -> Prompt:
    """Render and encode a prompt; raise SettingsError for a text that it cannot take.

    `<image_a>` and `<image_b>` say where the images go; a text with neither comes after image A and image B.
    """
    content, images = _content(text, tokenizer)
    rendered, plain = render(checkpoint.chat_template, [content, _plain(content)], thinking=thinking)
    single = tokenizer.encode(rendered)
    places = [place for place, id_ in enumerate(single) if id_ == checkpoint.image_token_id]
    if len(places) != 2:
        raise WeightsError(f"{checkpoint.folder}: chat template: expected it to place 2 images, found {len(places)}; "
                           "is it the template of a model that takes images?")
    _check_markers(tokenizer, single, tokenizer.encode(plain))
    size = grid[0] * grid[1]
    first, second = places[0], places[1] + size - 1
    block = [checkpoint.image_token_id] * size
    ids = (*single[: places[0]], *block, *single[places[0] + 1 : places[1]], *block, *single[places[1] + 1 :])
    return Prompt(
        text=text, thinking=thinking, rendered=rendered, token_ids=ids, images=images,
        spans=((first, first + size), (second, second + size)), grid=grid,
        opened_thinking=_opened_thinking(tokenizer, ids),
    )


def _content(text: str, tokenizer: Tokenizer) -> tuple[Content, tuple[Image, Image]]:
    """Divide a text at its image markers into the parts of a message."""
    _check_text(text, tokenizer)
    parts = re.split("(<image_[ab]>)", text)
    found = parts[1::2]
    if not found:
        return [{"type": "image"}, {"type": "image"}, {"type": "text", "text": text}], ("a", "b")
    if sorted(found) != sorted(MARKERS):
        raise SettingsError(f"prompt: expected <image_a> and <image_b> once each, or neither, found {', '.join(found)}")
    content = [{"type": "image"} if part in MARKERS else {"type": "text", "text": part} for part in parts if part]
    return content, (MARKERS[found[0]], MARKERS[found[1]])


def _check_text(text: str, tokenizer: Tokenizer) -> None:
    if not text.strip():
        raise SettingsError("prompt: expected a question about two images, found an empty text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise SettingsError(f"prompt: expected text in UTF-8, found bytes that are none at character {error.start}; "
                            "write the prompt again") from None
    for special in tokenizer.specials:
        if special in text:
            raise SettingsError(f"prompt: expected plain text, found {special}, a special token of the model; "
                                "write it otherwise (images are <image_a> and <image_b>)")


def _plain(content: Content) -> Content:
    """Return the same message with texts that can be no special token."""
    return [{"type": "text", "text": "x"} if part["type"] == "text" else part for part in content]


def _check_markers(tokenizer: Tokenizer, ids: list[int], plain: list[int]) -> None:
    """Refuse a text that becomes a special token only with the template around it, or after normalizing."""
    markers = set(tokenizer.specials.values())
    if [id_ for id_ in ids if id_ in markers] != [id_ for id_ in plain if id_ in markers]:
        raise SettingsError("prompt: expected plain text, found one that forms a special token of the model together "
                            "with the chat template; write it otherwise")


def _opened_thinking(tokenizer: Tokenizer, ids: tuple[int, ...]) -> bool:
    markers = (tokenizer.specials.get(THINK), tokenizer.specials.get(END_THINK))
    last = next((id_ for id_ in reversed(ids) if id_ in markers), None)
    return last is not None and last == markers[0]
