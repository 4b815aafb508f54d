"""What a checkpoint's JSON files say of the model's sizes and of its images; each value is checked as it is read."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from store.errors import WeightsError

INTEGER_LIMIT = 2**31         # no size of a model reaches it
NUMBER_LIMIT = 1e18
LAYER_LIMIT = 1024            # so that a damaged config.json cannot ask for a billion layers
LARGEST_SIDE = 448            # pixels; 256 tokens, what the ancestor's embeddings have
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)      # RGB; the preprocessor_config.json of GLM-4.6V-Flash
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
LONGEST_EDGE = 9_633_792      # pixels in two frames; the same file


@dataclass(frozen=True, slots=True)
class TextConfig:
    """The text decoder's sizes, under mlx-lm's names."""

    hidden_size: int
    intermediate_size: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    rope_theta: float
    rotary_dims: int                          # of head_dim; the rest is not rotated
    mrope_section: tuple[int, int, int]       # frequencies from t, h, w
    tie_word_embeddings: bool
    max_positions: int                        # tokens of prompt and answer together


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """The vision tower's sizes."""

    depth: int
    hidden_size: int
    n_heads: int
    intermediate_size: int        # of the merger
    out_hidden_size: int          # of an embedding; also the MLP width of a block
    table_side: int               # the position table has table_side x table_side rows: image_size // patch_size
    patch_size: int
    temporal_patch_size: int
    merge_size: int
    in_channels: int
    rms_norm_eps: float
    rope_theta: float


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """How the checkpoint's preprocessor_config.json wants images."""

    side: int                     # pixels; the largest multiple of patch x merge up to 448 that size allows
    patch_size: int
    temporal_patch_size: int
    merge_size: int
    mean: tuple[float, float, float]      # RGB
    std: tuple[float, float, float]
    largest_side: int             # pixels; what size.longest_edge allows, for whoever asks for more than `side`

    @property
    def unit(self) -> int:
        """Return what a side is a multiple of: the pixels of a merge cell."""
        return self.patch_size * self.merge_size


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object; raise WeightsError naming the file."""
    try:
        values = json.loads(file.read_bytes())
    except OSError as error:
        raise WeightsError(f"{file}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{file}: expected JSON, found {error}; download it again") from None
    if not isinstance(values, dict):
        raise WeightsError(f"{file}: expected a JSON object, found {type(values).__name__}; download it again")
    return values


class Section:
    """A JSON object that names file and key when a value is missing or of another kind."""

    def __init__(self, file: Path, values: dict[str, Any], path: str = "") -> None:
        """Take the object at `path` (dotted, empty for the whole file)."""
        self.file, self.values, self.path = file, values, path

    def __contains__(self, key: str) -> bool:
        """Tell whether the key is there and not null."""
        return self.values.get(key) is not None

    def wrong(self, key: str, expected: str) -> WeightsError:
        """Make the error for a value that is not as expected."""
        name = f"{self.path}.{key}" if self.path else key
        found = repr(self.values[key]) if key in self.values else "nothing"
        return WeightsError(f"{self.file}: {name}: expected {expected}, found {found[:80]}")

    def section(self, key: str, *, optional: bool = False) -> "Section":
        """Return the object under a key; an empty one where it is optional and not there."""
        value = self.values.get(key)
        if value is None and optional:
            value = {}
        if not isinstance(value, dict):
            raise self.wrong(key, "an object")
        return Section(self.file, value, f"{self.path}.{key}" if self.path else key)

    def integer(self, key: str, default: int | None = None, *, limit: int = INTEGER_LIMIT) -> int:
        """Return a positive integer below the limit."""
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < limit:
            raise self.wrong(key, f"an integer from 1 to {limit - 1}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Return a positive, finite number."""
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < NUMBER_LIMIT:
            raise self.wrong(key, "a number above 0")
        return float(value)

    def numbers(self, key: str, default: tuple[float, float, float]) -> tuple[float, float, float]:
        """Return three finite numbers, one a colour."""
        value = self.values.get(key)
        if value is None:
            return default
        if not _three(value) or not all(isinstance(part, int | float) and abs(part) < NUMBER_LIMIT for part in value):
            raise self.wrong(key, "three numbers (RGB)")
        return float(value[0]), float(value[1]), float(value[2])

    def ids(self, key: str) -> tuple[int, ...]:
        """Return token ids, which may stand alone or in a list; none where the key is not there."""
        value = self.values.get(key)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(part, int) and not isinstance(part, bool) and 0 <= part < INTEGER_LIMIT for part in ids):
            raise self.wrong(key, "a token id or a list of them")
        return tuple(ids)


def _three(value: object) -> bool:
    return isinstance(value, list) and len(value) == 3


def read_text_config(config: Section) -> TextConfig:
    """Read the text decoder's sizes from config.json's `text_config`."""
    text = config.section("text_config")
    n_heads = text.integer("num_attention_heads")
    n_kv_heads = text.integer("num_key_value_heads")
    if n_heads % n_kv_heads:
        raise text.wrong("num_key_value_heads", f"a divisor of num_attention_heads ({n_heads})")
    hidden_size = text.integer("hidden_size")
    head_dim = text.integer("head_dim", hidden_size // n_heads)
    rotary_dims = int(head_dim * min(_rope_number(text, "partial_rotary_factor", 0.5), 1.0))
    return TextConfig(
        hidden_size=hidden_size, intermediate_size=text.integer("intermediate_size"),
        n_layers=text.integer("num_hidden_layers", limit=LAYER_LIMIT), n_heads=n_heads, n_kv_heads=n_kv_heads,
        head_dim=head_dim, vocab_size=text.integer("vocab_size"), rms_norm_eps=text.number("rms_norm_eps", 1e-5),
        rope_theta=_rope_number(text, "rope_theta"), rotary_dims=rotary_dims,
        mrope_section=_mrope_section(text, rotary_dims),
        tie_word_embeddings=bool(text.values.get("tie_word_embeddings", config.values.get("tie_word_embeddings"))),
        max_positions=text.integer("max_position_embeddings", 131_072),      # GLM-4.6V's, where it is not said
    )


def _ropes(text: Section) -> list[Section]:
    """List where rope's values may stand: the newer place first, then the two older ones."""
    ropes = [text.section("rope_parameters", optional=True), text, text.section("rope_scaling", optional=True)]
    for rope in (ropes[0], ropes[2]):
        for key in ("rope_type", "type"):
            if rope.values.get(key, "default") not in ("default", "mrope"):
                raise rope.wrong(key, "'default', the only rope that this model uses")
    return ropes


def _rope_number(text: Section, key: str, default: float | None = None) -> float:
    for rope in _ropes(text):
        if key in rope:
            return rope.number(key)
    if default is not None:
        return default
    raise WeightsError(f"{text.file}: expected {key} in text_config.rope_parameters or in text_config, found neither; "
                       "without it every answer would be wrong: download config.json again")


def _mrope_section(text: Section, rotary_dims: int) -> tuple[int, int, int]:
    for rope in _ropes(text):
        if "mrope_section" in rope:
            value = rope.values["mrope_section"]
            if not _three(value) or not all(type(part) is int and part >= 0 for part in value):
                raise rope.wrong("mrope_section", "three integers")
            section = (value[0], value[1], value[2])
            break
    else:
        section = (8, 12, 12)      # transformers' default for this model
    if 2 * sum(section) != rotary_dims:
        raise WeightsError(f"{text.file}: mrope_section: expected a sum of {rotary_dims // 2} "
                           f"(half of the {rotary_dims} rotated dimensions), found {section}")
    return section


def read_vision_config(config: Section, text: TextConfig) -> VisionConfig:
    """Read the vision tower's sizes from config.json's `vision_config`."""
    vision = config.section("vision_config")
    hidden_size, n_heads = vision.integer("hidden_size"), vision.integer("num_heads")
    if hidden_size % (4 * n_heads):
        raise vision.wrong("hidden_size", f"a multiple of 4 x num_heads ({n_heads})")
    if vision.integer("out_hidden_size") != text.hidden_size:
        raise vision.wrong("out_hidden_size", f"text_config's hidden_size ({text.hidden_size})")
    patch_size = vision.integer("patch_size")
    return VisionConfig(
        depth=vision.integer("depth", limit=LAYER_LIMIT), hidden_size=hidden_size, n_heads=n_heads,
        intermediate_size=vision.integer("intermediate_size"), out_hidden_size=text.hidden_size,
        table_side=vision.integer("image_size") // patch_size, patch_size=patch_size,
        temporal_patch_size=vision.integer("temporal_patch_size", 2),
        merge_size=vision.integer("spatial_merge_size", 2), in_channels=vision.integer("in_channels", 3),
        rms_norm_eps=vision.number("rms_norm_eps", 1e-5),
        rope_theta=vision.section("rope_parameters", optional=True).number("rope_theta", 10000.0),
    )


def read_image_config(preprocessor: Section, vision: VisionConfig) -> ImageConfig:
    """Read how images are prepared; what the file lacks is as in GLM-4.6V-Flash."""
    for key, size in (("patch_size", vision.patch_size), ("merge_size", vision.merge_size),
                      ("temporal_patch_size", vision.temporal_patch_size)):
        if preprocessor.integer(key, size) != size:
            raise preprocessor.wrong(key, f"config.json's {size}")
    std = preprocessor.numbers("image_std", IMAGE_STD)
    side, largest_side = _sides(preprocessor.section("size", optional=True), vision)
    if min(std) <= 0:
        raise preprocessor.wrong("image_std", "numbers above 0")
    return ImageConfig(
        side=side, patch_size=vision.patch_size, temporal_patch_size=vision.temporal_patch_size,
        merge_size=vision.merge_size, mean=preprocessor.numbers("image_mean", IMAGE_MEAN), std=std,
        largest_side=largest_side,
    )


def _sides(size: Section, vision: VisionConfig) -> tuple[int, int]:
    """Choose the side of a square image in pixels, and the largest possible; `size` counts the pixels of two frames."""
    unit, frames = vision.patch_size * vision.merge_size, vision.temporal_patch_size
    most = math.isqrt(size.integer("longest_edge", LONGEST_EDGE, limit=2**53) // frames)
    least = math.ceil(math.sqrt(size.integer("shortest_edge", 1, limit=2**53) / frames))
    side = max(min(most, LARGEST_SIDE) // unit * unit, math.ceil(least / unit) * unit)
    if not unit <= side <= most:
        raise size.wrong("longest_edge", f"room for a side that is a multiple of {unit} and has {least} pixels or more")
    return side, most // unit * unit
