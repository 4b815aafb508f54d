"""The headers of a checkpoint's safetensors files, checked against the tensors that its configuration asks for.

Names are Hugging Face's; `hf_name` maps an MLX folder's names (mlx-community) to them. No tensor's data is read.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from store.config import TextConfig, VisionConfig, read_json
from store.errors import WeightsError

Shape = tuple[int, ...]

INDEX = "model.safetensors.index.json"
FLOATS = ("F32", "BF16", "F16")
PREFIXES = (      # MLX's, Hugging Face's
    ("language_model.model.", "model.language_model."),
    ("language_model.lm_head.", "lm_head."),
    ("vision_tower.", "model.visual."),
)


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor's header: where it lies and what it is."""

    file: Path
    dtype: str                    # as safetensors names it: F32, BF16, F16, U32, ...
    shape: Shape


@dataclass(frozen=True, slots=True)
class Packing:
    """How MLX packed a quantized layer: `bits` a value, a scale for every `group_size` of them."""

    group_size: int
    bits: int
    mode: str


def hf_name(name: str) -> str:
    """Translate a tensor's or a layer's name in an MLX folder to Hugging Face's; others stay as they are."""
    for mlx, hf in PREFIXES:
        if name.startswith(mlx):
            return hf + name.removeprefix(mlx)
    return name


def mlx_name(name: str) -> str:
    """Translate a Hugging Face name to the one of an MLX folder."""
    for mlx, hf in PREFIXES:
        if name.startswith(hf):
            return mlx + name.removeprefix(hf)
    return name


def text_tensors(config: TextConfig) -> dict[str, Shape]:
    """Name every tensor of the text decoder with its shape."""
    width, mlp = config.hidden_size, config.intermediate_size
    queries, keys = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    layer: dict[str, Shape] = {
        "input_layernorm.weight": (width,), "post_self_attn_layernorm.weight": (width,),
        "post_attention_layernorm.weight": (width,), "post_mlp_layernorm.weight": (width,),
        "self_attn.q_proj.weight": (queries, width), "self_attn.q_proj.bias": (queries,),
        "self_attn.k_proj.weight": (keys, width), "self_attn.k_proj.bias": (keys,),
        "self_attn.v_proj.weight": (keys, width), "self_attn.v_proj.bias": (keys,),
        "self_attn.o_proj.weight": (width, queries),
        "mlp.gate_up_proj.weight": (2 * mlp, width), "mlp.down_proj.weight": (width, mlp),
    }
    tensors: dict[str, Shape] = {"model.language_model.embed_tokens.weight": (config.vocab_size, width)}
    for i in range(config.n_layers):
        tensors |= {f"model.language_model.layers.{i}.{name}": shape for name, shape in layer.items()}
    tensors["model.language_model.norm.weight"] = (width,)
    if not config.tie_word_embeddings:
        tensors["lm_head.weight"] = (config.vocab_size, width)
    return tensors


def vision_tensors(config: VisionConfig) -> dict[str, Shape]:
    """Name every tensor of the vision tower with its shape; convolutions as Hugging Face has them, channels second."""
    width, out, mlp = config.hidden_size, config.out_hidden_size, config.intermediate_size
    patch, merge = (config.patch_size,) * 2, (config.merge_size,) * 2
    block: dict[str, Shape] = {
        "norm1.weight": (width,), "norm2.weight": (width,),
        "attn.qkv.weight": (3 * width, width), "attn.proj.weight": (width, width),
        "mlp.gate_proj.weight": (out, width), "mlp.up_proj.weight": (out, width), "mlp.down_proj.weight": (width, out),
    }
    tensors: dict[str, Shape] = {
        "patch_embed.proj.weight": (width, config.in_channels, config.temporal_patch_size, *patch),
        "patch_embed.proj.bias": (width,), "embeddings.position_embedding.weight": (config.table_side**2, width),
        "post_conv_layernorm.weight": (width,), "post_layernorm.weight": (width,),
        "downsample.weight": (out, width, *merge), "downsample.bias": (out,),
        "merger.proj.weight": (out, out), "merger.gate_proj.weight": (mlp, out), "merger.up_proj.weight": (mlp, out),
        "merger.down_proj.weight": (out, mlp),
        "merger.post_projection_norm.weight": (out,), "merger.post_projection_norm.bias": (out,),
    }
    for i in range(config.depth):
        tensors |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
    return {f"model.visual.{name}": shape for name, shape in tensors.items()}


def stored_shape(name: str, shape: Shape) -> Shape:
    """Return the shape that a tensor has in its file: MLX folders keep a convolution's channels last."""
    if name.startswith("vision_tower.") and len(shape) > 2:
        return (shape[0], *shape[2:], shape[1])
    return shape


def packing_of(quantization: Mapping[str, Any], layer: str) -> Packing:
    """Read config.json's quantization of one layer, by its name in the file; an override for the layer goes first."""
    override = quantization.get(layer)
    values = {**quantization, **(override if isinstance(override, dict) else {})}
    group_size, bits, mode = values.get("group_size"), values.get("bits"), values.get("mode", "affine")
    if type(group_size) is not int or type(bits) is not int or min(group_size, bits) < 1 or not isinstance(mode, str):
        raise WeightsError(f"config.json: quantization of {layer}: expected group_size and bits as integers above 0, "
                           f"found {group_size!r} and {bits!r}; was the folder written by MLX?")
    return Packing(group_size, bits, mode)


def weight_files(folder: Path) -> tuple[Path, ...]:
    """List the safetensors files: those of the index where there is one, else all in the folder."""
    if not (folder / INDEX).is_file():
        return tuple(sorted(folder.glob("[!.]*.safetensors")))
    named = read_json(folder / INDEX).get("weight_map")
    names = set(named.values()) if isinstance(named, dict) and all(map(_plain, named.values())) else set()
    if not names:
        raise WeightsError(f"{folder / INDEX}: expected a weight_map from tensors to file names, found none; "
                           "download the file again")
    files = tuple(folder / name for name in sorted(names))
    lost = [file.name for file in files if not file.is_file()]
    if lost:
        raise WeightsError(f"{folder}: {INDEX} names {len(files)} files, and {len(lost)} of them are not there: "
                           f"{', '.join(lost[:5])}; the download is not complete, start it again")
    return files


def _plain(name: object) -> bool:
    """Tell whether this is the bare name of a safetensors file: an index may not lead out of its folder."""
    return isinstance(name, str) and name.endswith(".safetensors") and Path(name).name == name


def read_headers(files: tuple[Path, ...]) -> dict[str, Tensor]:
    """Read the headers of safetensors files; raise WeightsError for one that is truncated or damaged."""
    tensors: dict[str, Tensor] = {}
    for file in files:
        for name, tensor in _read_header(file).items():
            if name in tensors:
                raise WeightsError(f"{file}: {name} stands in {tensors[name].file.name} too; expected each tensor "
                                   "once: remove the files of the other download")
            tensors[name] = tensor
    return tensors


def _read_header(file: Path) -> dict[str, Tensor]:
    try:
        with safe_open(file, framework="numpy") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}      # noqa: SIM118 - it is no dict
            return {name: Tensor(file, one.get_dtype(), tuple(one.get_shape())) for name, one in slices.items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{file}: {_damage(file) or error}; the download is not complete, start it again") from None


def _damage(file: Path) -> str | None:
    """Say in numbers what is wrong with a file that does not open; None where the numbers fit."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        start = opened.read(8)
        if start == b"version ":
            return f"expected weights, found a Git LFS pointer of {size} bytes"
        length = int.from_bytes(start, "little")
        if size < 8 or length > size - 8:
            return f"expected a safetensors header, found {size:,} bytes that do not hold one"
        header = opened.read(length)
    try:
        end = max((entry["data_offsets"][1] for name, entry in json.loads(header).items() if name != "__metadata__"))
        want = 8 + length + end
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    return f"expected {want:,} bytes by its header, found {size:,}" if want != size else None


def check_tensors(
    folder: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, Shape], quantization: Mapping[str, Any] | None,
) -> None:
    """Raise WeightsError for the first expected tensor that is missing or has another shape or type."""
    in_files = {hf_name(name): name for name in tensors}
    missing = [name for name in expected if name not in in_files]
    if missing:
        known = mlx_name(missing[0]) if any(name != hf for hf, name in in_files.items()) else missing[0]
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise WeightsError(f"{folder}: {known} is missing{more}: expected {len(expected)} tensors, found "
                           f"{len(expected) - len(missing)}; is the download complete, config.json the same model's?")
    for hf, shape in expected.items():
        name = in_files[hf]
        layer = name.removesuffix(".weight")
        if f"{layer}.scales" in tensors:
            _check_packed(tensors, layer, shape, quantization)
        else:
            _check(tensors, name, stored_shape(name, shape), FLOATS)


def _check_packed(
    tensors: Mapping[str, Tensor], layer: str, shape: Shape, quantization: Mapping[str, Any] | None,
) -> None:
    """Check a layer that MLX quantized: packed 32-bit words, scales, and biases where the mode has them."""
    if quantization is None:
        raise WeightsError(f"{tensors[layer + '.scales'].file}: {layer} is quantized; "
                           "expected how in config.json's `quantization`, found nothing")
    packing = packing_of(quantization, layer)
    rows, columns = shape[0], shape[-1]
    _check(tensors, f"{layer}.weight", (rows, columns * packing.bits // 32), ("U32",))
    _check(tensors, f"{layer}.scales", (rows, columns // packing.group_size), (*FLOATS, "U8"))
    if packing.mode == "affine":
        _check(tensors, f"{layer}.biases", (rows, columns // packing.group_size), FLOATS)


def _check(tensors: Mapping[str, Tensor], name: str, shape: Shape, dtypes: tuple[str, ...]) -> None:
    tensor = tensors.get(name)
    if tensor is None:
        raise WeightsError(f"{name} is missing: expected it beside the packed weight of a quantized layer; "
                           "is the download complete?")
    if tensor.shape != shape or tensor.dtype not in dtypes:
        raise WeightsError(f"{tensor.file}: {name}: expected {list(shape)} in {' or '.join(dtypes)}, found "
                           f"{list(tensor.shape)} in {tensor.dtype}; is config.json the same model's?")
