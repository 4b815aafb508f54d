"""From a checked checkpoint to a model with its weights. Each half reads its own tensors and never the other's."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

from store.checkpoint import Checkpoint, VisionConfig
from store.errors import WeightsError
from store.weights import hf_name, packing_of
from workers.model.text import TextModel
from workers.model.vision import VisionModel

Weights = dict[str, mx.array]

# The beginning of a tensor's name, as Hugging Face has it, and in the model here.
TEXT = {"model.language_model.": "", "lm_head.": "lm_head."}
VISION = {"model.visual.": ""}
BUFFERS = ".inv_freq"      # computed here, but stored by older exports


def load_text_model(checkpoint: Checkpoint) -> TextModel:
    """Load the decoder; raise WeightsError naming a tensor that is missing, unknown or of a wrong shape."""
    model = TextModel(checkpoint.text)
    names = sanitize(checkpoint.tensors, TEXT)
    if checkpoint.text.tie_word_embeddings:
        names = {path: name for path, name in names.items() if not path.startswith("lm_head.")}
    _quantize(model, names, checkpoint)
    _fill(model, _read(checkpoint, names), checkpoint.folder)
    return model


def load_vision_model(checkpoint: Checkpoint) -> VisionModel:
    """Load the vision tower; raise WeightsError naming a tensor that is missing, unknown or of a wrong shape."""
    model = VisionModel(checkpoint.vision)
    names = sanitize(checkpoint.tensors, VISION)
    _quantize(model, names, checkpoint)
    _fill(model, flatten_convolutions(_read(checkpoint, names), checkpoint.vision), checkpoint.folder)
    return model


def sanitize(names: Iterable[str], half: Mapping[str, str]) -> dict[str, str]:
    """Map the paths of one half of the model to the names of its tensors in the files; leave out the other half's."""
    paths = {}
    for name in names:
        full = hf_name(name)
        beginning = next((beginning for beginning in half if full.startswith(beginning)), None)
        if beginning is not None and not full.endswith(BUFFERS):
            paths[half[beginning] + full.removeprefix(beginning)] = name
    return paths


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


def _read(checkpoint: Checkpoint, names: Mapping[str, str]) -> Weights:
    """Open tensors under the paths that they have in the model; none is read from disk before it is evaluated."""
    files: dict[Path, dict[str, str]] = defaultdict(dict)
    for path, name in names.items():
        files[checkpoint.tensors[name].file][path] = name
    weights: Weights = {}
    for file, wanted in files.items():
        tensors = mx.load(str(file), format="safetensors")
        assert isinstance(tensors, dict)
        weights |= {path: tensors[name] for path, name in wanted.items()}
    return weights


def _quantize(model: nn.Module, names: Mapping[str, str], checkpoint: Checkpoint) -> None:
    """Put quantized layers where the files have scales, each packed as config.json says of it."""
    packings = {
        path.removesuffix(".scales"): asdict(packing_of(checkpoint.quantization or {}, name.removesuffix(".scales")))
        for path, name in names.items() if path.endswith(".scales")
    }
    try:
        nn.quantize(model, class_predicate=lambda path, _: packings.get(path, False))
    except (ValueError, TypeError) as error:
        raise WeightsError(f"{checkpoint.folder}: config.json's `quantization` does not fit the tensors: {error}; "
                           "download it again") from None


def _fill(model: nn.Module, weights: Weights, folder: Path) -> None:
    """Give the model its weights, in the one type that it computes in, and read them."""
    expected: Weights = dict(tree_flatten(model.parameters()))
    for path in sorted(expected.keys() | weights.keys()):
        want, found = (f"shape {tree[path].shape}" if path in tree else "none" for tree in (expected, weights))
        if want != found:
            raise WeightsError(f"{folder}: tensor {path}: expected {want}, found {found}; download it again")
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
