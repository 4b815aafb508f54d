"""Text to token ids and back, by the checkpoint's tokenizer.json. It knows no prompt and no template."""

import codecs
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import tokenizers

from store.checkpoint import Checkpoint
from store.errors import WeightsError

THINK, END_THINK = "<think>", "</think>"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a row of tokens says, without markers: the answer, and what the model thought before it."""

    text: str
    thinking: str


class Tokenizer:
    """A byte-level tokenizer whose markers (all of its added tokens) and ending tokens never become text."""

    def __init__(self, backend: tokenizers.Tokenizer, eos_token_ids: Iterable[int]) -> None:
        """Wrap the tokenizers package's own; the ids in `eos_token_ids` end an answer."""
        self._backend = backend
        added = backend.get_added_tokens_decoder()
        self.specials: dict[str, int] = {token.content: id_ for id_, token in sorted(added.items())}
        self._silent = frozenset(added).union(eos_token_ids)
        self._byte_of = {character: byte for byte, character in enumerate(_byte_characters())}
        self._bytes: dict[int, bytes] = {}      # of the tokens that have been asked for

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a rendered prompt; the template brings its own markers, none are added."""
        return list(self._backend.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of token ids; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")

    def token(self, id_: int) -> str | None:
        """Return the token of an id as tokenizer.json spells it; None for an id that it does not have."""
        token: str | None = self._backend.id_to_token(id_)
        return token

    def token_bytes(self, id_: int) -> bytes:
        """Return the UTF-8 bytes of one token, which may end within a character; none for a marker."""
        if id_ not in self._bytes:
            self._bytes[id_] = self._read_bytes(id_)
        return self._bytes[id_]

    def _read_bytes(self, id_: int) -> bytes:
        token = None if id_ in self._silent else self.token(id_)
        if token is None:
            return b""
        if all(character in self._byte_of for character in token):
            return bytes(self._byte_of[character] for character in token)
        return token.encode()

    def stream(self, *, opened_thinking: bool = False) -> "TextStream":
        """Return a decoder that takes one token at a time."""
        return TextStream(self, opened_thinking=opened_thinking)

    def split(self, ids: Sequence[int], *, opened_thinking: bool) -> Answer:
        """Separate the answer from the thinking; `opened_thinking` says that the prompt ends inside of it.

        Of thinking that never ended, all is thinking and the answer is empty, unless something stood before it.
        """
        stream = self.stream(opened_thinking=opened_thinking)
        text = "".join(map(stream.add, ids)) + stream.end()
        return Answer(text, stream.thinking)


class TextStream:
    """Turns tokens into the answer's text as they come; a character whose bytes are not complete is held back."""

    def __init__(self, tokenizer: Tokenizer, *, opened_thinking: bool) -> None:
        """Start before the first generated token."""
        self._tokenizer, self._inside = tokenizer, opened_thinking
        self._think, self._end_think = tokenizer.specials.get(THINK), tokenizer.specials.get(END_THINK)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._thought = b""
        self._after = False      # there was thinking before this answer
        self._begun = False      # the answer has more than newlines
        self._held = ""          # newlines before it, which go when there is thinking

    @property
    def thinking(self) -> str:
        """Return what the model has thought so far."""
        return self._thought.decode("utf-8", errors="replace").strip("\n")

    def add(self, id_: int) -> str:
        """Take one token and return the answer's text that it makes certain, often nothing while the model thinks."""
        if id_ == self._think:
            text = self._answer(self._decoder.decode(b"", final=True))
            self._inside, self._held = True, ""
            return text
        if id_ == self._end_think and self._inside:
            self._inside, self._after, self._begun = False, True, False
            return ""
        piece = self._tokenizer.token_bytes(id_)
        if self._inside:
            self._thought += piece
            return ""
        return self._answer(self._decoder.decode(piece))

    def end(self) -> str:
        """Return what was held back, after the last token."""
        return self._answer(self._decoder.decode(b"", final=True)) or self._held

    def _answer(self, text: str) -> str:
        if self._begun:
            return text
        text, self._held = self._held + text, ""
        if text.strip("\n"):
            self._begun = True
            return text.lstrip("\n") if self._after else text
        self._held = "" if self._after else text
        return ""


def load_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """Load the checkpoint's tokenizer; raise WeightsError where it is damaged or not byte-level."""
    file = checkpoint.tokenizer_file
    try:
        backend = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:      # the package raises plain Exception for whatever it cannot read
        raise WeightsError(f"{file}: expected a tokenizer, found {error}; download it again") from None
    if backend.decoder is None or not _byte_level(json.loads(backend.decoder.__getstate__())):
        raise WeightsError(f"{file}: expected a byte-level tokenizer, as GLM-4.6V has, found another kind; "
                           "is it the file of the same model?")
    if backend.id_to_token(checkpoint.image_token_id) is None:
        raise WeightsError(f"{file}: expected a token with config.json's image_token_id {checkpoint.image_token_id}, "
                           "found none; is it the file of the same model?")
    backend.no_truncation()
    backend.no_padding()
    return Tokenizer(backend, checkpoint.eos_token_ids)


def _byte_level(decoder: object) -> bool:
    if not isinstance(decoder, dict):
        return False
    parts = decoder.get("decoders")
    return decoder.get("type") == "ByteLevel" or (isinstance(parts, list) and any(map(_byte_level, parts)))


def _byte_characters() -> list[str]:
    """List the character by which byte-level tokenizers write each byte (GPT-2's table): printable ones as they are."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = (byte for byte in range(256) if byte not in printable)
    stand_in = {byte: chr(256 + place) for place, byte in enumerate(others)}
    return [stand_in.get(byte, chr(byte)) for byte in range(256)]
