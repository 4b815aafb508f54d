"""From a checked checkpoint to a model with its weights. Each half reads its own tensors and never the other's."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

from store.checkpoint import Checkpoint, VisionConfig
from store.errors import WeightsError
from workers.model.text import TextModel
from workers.model.vision import VisionModel

Weights = dict[str, mx.array]
Names = Sequence[tuple[str, str]]      # beginning of a tensor's name in the files, and in the model

TEXT_NAMES: Names = (
    ("model.language_model.", ""), ("lm_head.", "lm_head."),                         # Hugging Face
    ("language_model.model.", ""), ("language_model.lm_head.", "lm_head."),          # mlx-community
)
VISION_NAMES: Names = (("model.visual.", ""), ("vision_tower.", ""))
BUFFERS = ".inv_freq"      # computed here, but stored by older exports


def load_text_model(checkpoint: Checkpoint) -> TextModel:
    """Load the decoder; raise WeightsError naming a tensor that is missing, unknown or of a wrong shape."""
    model = TextModel(checkpoint.text)
    weights = sanitize(_read(checkpoint, TEXT_NAMES), TEXT_NAMES)
    if checkpoint.text.tie_word_embeddings:
        weights = {path: array for path, array in weights.items() if not path.startswith("lm_head.")}
    _quantize(model, weights, checkpoint, TEXT_NAMES)
    _fill(model, weights, checkpoint.folder)
    return model


def load_vision_model(checkpoint: Checkpoint) -> VisionModel:
    """Load the vision tower; raise WeightsError naming a tensor that is missing, unknown or of a wrong shape."""
    model = VisionModel(checkpoint.vision)
    weights = flatten_convolutions(sanitize(_read(checkpoint, VISION_NAMES), VISION_NAMES), checkpoint.vision)
    _quantize(model, weights, checkpoint, VISION_NAMES)
    _fill(model, weights, checkpoint.folder)
    return model


def sanitize(weights: Weights, names: Names) -> Weights:
    """Give tensors of one half of the model their names in it; leave out all others."""
    renamed = {_path(name, names): array for name, array in weights.items()}
    return {path: array for path, array in renamed.items() if path is not None and not path.endswith(BUFFERS)}


def _path(name: str, names: Names) -> str | None:
    for in_files, in_model in names:
        if name.startswith(in_files):
            return in_model + name.removeprefix(in_files)
    return None


def flatten_convolutions(weights: Weights, config: VisionConfig) -> Weights:
    """Turn the two convolutions, whose strides equal their kernels, into products with flattened content.

    A patch is (channel, frame, row, col), a merge cell (row, col, channel). The files have channels first as torch
    or last as MLX; a weight of another shape is left as it is.
    """
    frames, side, merge = config.temporal_patch_size, config.patch_size, config.merge_size
    orders = {
        ("patch_embed.proj.weight", (config.in_channels, frames, side, side)): (0, 1, 2, 3, 4),
        ("patch_embed.proj.weight", (frames, side, side, config.in_channels)): (0, 4, 1, 2, 3),
        ("downsample.weight", (config.hidden_size, merge, merge)): (0, 2, 3, 1),
        ("downsample.weight", (merge, merge, config.hidden_size)): (0, 1, 2, 3),
    }
    flat = {path: array.transpose(order).flatten(1)
            for (path, kernel), order in orders.items()
            if (array := weights.get(path)) is not None and array.shape[1:] == kernel}
    return weights | flat


def _read(checkpoint: Checkpoint, names: Names) -> Weights:
    """Open this half's tensors, by their names in the files; none is read from disk before it is evaluated."""
    files: dict[Path, list[str]] = defaultdict(list)
    for name, tensor in checkpoint.tensors.items():
        if _path(name, names) is not None:
            files[tensor.file].append(name)
    weights: Weights = {}
    for file, wanted in files.items():
        tensors = mx.load(str(file), format="safetensors")
        assert isinstance(tensors, dict)
        weights |= {name: tensors[name] for name in wanted}
    return weights


def _quantize(model: nn.Module, weights: Weights, checkpoint: Checkpoint, names: Names) -> None:
    """Put quantized layers where the files have scales, as config.json says: in general, or for a path of its own."""
    if not any(path.endswith(".scales") for path in weights):
        return
    settings = checkpoint.quantization
    if settings is None:
        raise WeightsError(f"{checkpoint.folder}: found quantized tensors, expected `quantization` (group_size, bits) "
                           "in config.json; download config.json again")
    own = {_path(f"{name}.", names): value for name, value in settings.items() if isinstance(value, dict)}

    def chosen(path: str, _: nn.Module) -> bool | dict[str, Any]:
        return own.get(f"{path}.", True) if f"{path}.scales" in weights else False

    try:
        nn.quantize(model, settings["group_size"], settings["bits"], mode=settings.get("mode", "affine"),
                    class_predicate=chosen)
    except (KeyError, ValueError, TypeError) as error:
        raise WeightsError(f"{checkpoint.folder}: expected group_size, bits and mode of MLX in config.json's "
                           f"`quantization`, found {settings}: {error}") from None


def _fill(model: nn.Module, weights: Weights, folder: Path) -> None:
    """Give the model its weights, in the one type that it computes in, and read them."""
    expected: Weights = dict(tree_flatten(model.parameters()))
    for path in sorted(expected.keys() | weights.keys()):
        want, found = (f"shape {tree[path].shape}" if path in tree else "none" for tree in (expected, weights))
        if want != found:
            raise WeightsError(f"{folder}: tensor {path}: expected {want}, found {found}; download the checkpoint again")
    dtype = _compute_dtype(weights)
    model.load_weights([(path, _cast(array, dtype)) for path, array in weights.items()])
    mx.eval(model.parameters())


def _compute_dtype(weights: Weights) -> mx.Dtype:
    """Return the floating type that most of the weights' values have; scales stand for what they scale."""
    sizes: dict[mx.Dtype, int] = defaultdict(int)
    for array in weights.values():
        if mx.issubdtype(array.dtype, mx.floating):
            sizes[array.dtype] += array.size
    return max(sizes, key=lambda dtype: sizes[dtype])


def _cast(array: mx.array, dtype: mx.Dtype) -> mx.array:
    return array.astype(dtype) if mx.issubdtype(array.dtype, mx.floating) else array
