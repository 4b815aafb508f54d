"""Checkpoints as they come: in several files, in 16 bit, quantized by MLX, from older exports, incomplete."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from conftest import WEIGHTS
from numpy.typing import NDArray
from reference import (
    GREEDY,
    PAIRS,
    arrays,
    copy_checkpoint,
    expected_rows,
    generate,
    make_engine,
    make_rows,
    prompt_embeddings,
    read_weights,
    reference_prompt,
)

from store.checkpoint import Checkpoint, open_checkpoint
from store.errors import WeightsError
from workers.engine import Engine
from workers.model.cache import KVCache
from workers.model.load import load_text_model, load_vision_model
from workers.model.rope import make_prompt_rotation, make_step_rotation, position_ids

Weights = dict[str, mx.array]

WIDE = 200_000                   # MLP width of the half of a model that must stay unread
WIDE_BYTES = WIDE * 64 * 4       # of one such tensor, 51 MB

PER_PATH = "language_model.model.layers.0.mlp.down_proj"      # the path that has bits of its own
MLX_NAMES = (("model.language_model.", "language_model.model."), ("lm_head.", "language_model.lm_head."),
             ("model.visual.", "vision_tower."))


def mlx_weights() -> tuple[Weights, Weights]:
    """Quantize the reference as mlx-community does; return it, and what its values are, under Hugging Face's names."""
    packed: Weights = {}
    plain: Weights = {}
    for name, array in read_weights().items():
        beginning, other = next(names for names in MLX_NAMES if name.startswith(names[0]))
        mlx_name = other + name.removeprefix(beginning)
        layer = mlx_name.removesuffix(".weight")
        plain[name] = array
        if layer.startswith("vision_tower."):
            packed[mlx_name] = mx.contiguous(mx.moveaxis(array, 1, -1)) if array.ndim > 2 else array
        elif array.ndim == 2:
            bits = 8 if layer == PER_PATH else 4
            packed[mlx_name], scales, biases = mx.quantize(array, group_size=32, bits=bits)
            packed[f"{layer}.scales"], packed[f"{layer}.biases"] = scales, biases
            plain[name] = mx.dequantize(packed[mlx_name], scales, biases, group_size=32, bits=bits)
        else:
            packed[mlx_name] = array
    return packed, plain


def say_quantized(config: dict[str, Any]) -> None:
    config["quantization"] = {"group_size": 32, "bits": 4, "mode": "affine", PER_PATH: {"group_size": 32, "bits": 8}}


def last_logits(engine: Engine) -> NDArray[np.float32]:
    """Return the logits [pairs, vocab] of the first prompt's last position."""
    model, prompt = engine.model, reference_prompt(0)
    rotate = make_prompt_rotation(model.config, position_ids(len(prompt.token_ids), prompt.spans, prompt.grid))
    cache = KVCache(model.config, len(PAIRS), len(prompt.token_ids), model.dtype)
    hidden = model(prompt_embeddings(engine, prompt, PAIRS), rotate, cache.window(slice(0, len(PAIRS)), 0))
    return np.array(model.logits(hidden[:, -1]).astype(mx.float32))


def test_a_checkpoint_in_several_files_with_an_index_generates_the_same(tmp_path: Path) -> None:
    folder, weights = copy_checkpoint(tmp_path / "several"), read_weights()
    (folder / "model.safetensors").unlink()
    index = {name: f"model-0000{1 + place % 3}-of-00003.safetensors" for place, name in enumerate(sorted(weights))}
    for file in set(index.values()):
        mx.save_safetensors(str(folder / file), {name: weights[name] for name in index if index[name] == file})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))

    assert generate(make_engine(folder), reference_prompt(0), make_rows(), GREEDY) == expected_rows(0)


@pytest.mark.parametrize(("dtype", "error"), [(mx.bfloat16, 0.1), (mx.float16, 0.02)])
def test_a_checkpoint_in_16_bit_computes_in_16_bit(tmp_path: Path, dtype: mx.Dtype, error: float) -> None:
    weights = {name: array.astype(dtype) for name, array in read_weights().items()}
    engine = make_engine(copy_checkpoint(tmp_path / "half", weights=weights))

    generated = generate(engine, reference_prompt(0), make_rows()[:2], GREEDY)

    assert engine.model.dtype == dtype
    assert all(row.token_ids for row in generated)
    # Logits are sums of about 64 products near 1, through 2 layers, each exact to 8 or 11 bits.
    assert np.abs(last_logits(engine) - arrays()["last_logits_0"]).max() < error


def test_a_checkpoint_with_norms_in_float32_computes_in_the_type_of_most_weights(tmp_path: Path) -> None:
    weights = {name: array.astype(mx.bfloat16) if array.ndim > 1 else array for name, array in read_weights().items()}
    model = make_engine(copy_checkpoint(tmp_path / "mixed", weights=weights)).model

    hidden = model(model.embed(mx.array([[1, 2]])), make_step_rotation(model.config, mx.array([0])),
                   KVCache(model.config, 1, 2, model.dtype).window(slice(0, 1), 0))

    assert {model.dtype, hidden.dtype, model.logits(hidden[:, -1]).dtype} == {mx.bfloat16}


def test_a_checkpoint_quantized_to_4_bit_with_mlx_names_computes_what_its_values_say(tmp_path: Path) -> None:
    packed, plain = mlx_weights()
    quantized = make_engine(copy_checkpoint(tmp_path / "packed", weights=packed, edit=say_quantized))
    dequantized = make_engine(copy_checkpoint(tmp_path / "plain", weights=plain))

    logits = last_logits(quantized)

    # float32 sums in another order; the loss of the quantization itself is on both sides.
    np.testing.assert_allclose(logits, last_logits(dequantized), atol=1e-4)
    assert np.abs(logits - arrays()["last_logits_0"]).max() > 1e-2
    assert generate(quantized, reference_prompt(0), make_rows(), GREEDY) == generate(
        dequantized, reference_prompt(0), make_rows(), GREEDY)


def test_the_vision_tower_of_an_mlx_folder_equals_that_of_hugging_face(tmp_path: Path) -> None:
    folder = copy_checkpoint(tmp_path / "packed", weights=mlx_weights()[0], edit=say_quantized)
    checkpoint = open_checkpoint(WEIGHTS)
    patches = mx.random.normal((1, 1024, 3 * 2 * 14 * 14), key=mx.random.key(0))

    embeddings = load_vision_model(open_checkpoint(folder))(patches, (32, 32))

    np.testing.assert_array_equal(np.array(embeddings), np.array(load_vision_model(checkpoint)(patches, (32, 32))))


@pytest.mark.parametrize("stored", [False, True], ids=["no head in the files", "a head in the files"])
def test_a_head_tied_to_the_embedding_equals_a_head_with_its_values(tmp_path: Path, stored: bool) -> None:
    weights = read_weights()
    tied = {name: array for name, array in weights.items() if stored or name != "lm_head.weight"}
    copied = weights | {"lm_head.weight": weights["model.language_model.embed_tokens.weight"]}

    logits = last_logits(make_engine(copy_checkpoint(tmp_path / "tied", weights=tied, edit=tie)))

    expected = last_logits(make_engine(copy_checkpoint(tmp_path / "copied", weights=copied)))
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def tie(config: dict[str, Any]) -> None:
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True


def test_rope_settings_in_the_old_places_generate_the_same(tmp_path: Path) -> None:
    folder = copy_checkpoint(tmp_path / "old", edit=move_rope)

    assert "rope_parameters" not in json.loads((folder / "config.json").read_text())["text_config"]
    assert generate(make_engine(folder), reference_prompt(0), make_rows(), GREEDY) == expected_rows(0)


def move_rope(config: dict[str, Any]) -> None:
    rope = config["text_config"].pop("rope_parameters")
    config["text_config"] |= {
        "rope_theta": rope["rope_theta"], "partial_rotary_factor": rope["partial_rotary_factor"],
        "rope_scaling": {"type": "default", "mrope_section": rope["mrope_section"]},
    }


def test_another_rope_theta_generates_otherwise(tmp_path: Path) -> None:
    def change(config: dict[str, Any]) -> None:
        config["text_config"]["rope_parameters"]["rope_theta"] = 10_000.0

    changed = last_logits(make_engine(copy_checkpoint(tmp_path / "theta", edit=change)))

    assert np.abs(changed - arrays()["last_logits_0"]).max() > 1e-2


@pytest.mark.parametrize("load", [load_text_model, load_vision_model])
def test_a_tensor_that_is_missing_is_named(load: Callable[[Any], object]) -> None:
    checkpoint = open_checkpoint(WEIGHTS)
    half = "language_model." if load is load_text_model else "visual."
    lost = next(name for name in checkpoint.tensors if half in name and "norm" in name)
    fewer = {name: tensor for name, tensor in checkpoint.tensors.items() if name != lost}

    with pytest.raises(WeightsError, match=f"{lost.split(half)[1]}: expected shape .*, found none"):
        load(replace(checkpoint, tensors=fewer))


def test_a_tensor_of_a_wrong_shape_is_named() -> None:
    checkpoint = open_checkpoint(WEIGHTS)
    wider = replace(checkpoint, text=replace(checkpoint.text, intermediate_size=97))

    with pytest.raises(WeightsError, match=r"layers\.0\.mlp\.down_proj\.weight: expected shape \(64, 97\), found "):
        load_text_model(wider)


def test_a_tensor_that_the_model_does_not_have_is_named(tmp_path: Path) -> None:
    weights = read_weights() | {"model.language_model.layers.0.self_attn.q_norm.weight": mx.ones((32,))}
    checkpoint = open_checkpoint(copy_checkpoint(tmp_path / "more", weights=weights))

    with pytest.raises(WeightsError, match=r"q_norm\.weight: expected none"):
        load_text_model(checkpoint)


def enlarge(folder: Path, half: str, part: str, sides: dict[int, int]) -> Checkpoint:
    """Copy the reference with wider MLPs in one half of the model, full of zeros."""
    def widen(config: dict[str, Any]) -> None:
        config[half]["intermediate_size"] = WIDE

    wide = {name: mx.zeros([sides.get(side, side) for side in array.shape]) if part in name else array
            for name, array in read_weights().items()}
    return open_checkpoint(copy_checkpoint(folder, weights=wide, edit=widen))


def peak_of(work: Callable[[], object]) -> int:
    """Return the most bytes that MLX held at once for the work, beyond what it held before."""
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    work()
    return mx.get_peak_memory() - before


def test_generating_from_embeddings_leaves_the_vision_weights_in_the_same_file_unread(tmp_path: Path) -> None:
    checkpoint = enlarge(tmp_path / "wide", "vision_config", ".merger.", {48: WIDE})
    rows, prompt = make_rows()[:1], reference_prompt(0)

    peak = peak_of(lambda: generate(Engine(load_text_model(checkpoint), []), prompt, rows, GREEDY))

    assert peak < WIDE_BYTES / 2
    assert peak_of(lambda: load_vision_model(checkpoint)) > WIDE_BYTES      # so the measure would have shown it


def test_embedding_images_leaves_the_text_weights_in_the_same_file_unread(tmp_path: Path) -> None:
    checkpoint = enlarge(tmp_path / "wide", "text_config", ".mlp.", {96: WIDE, 192: 2 * WIDE})

    assert peak_of(lambda: load_vision_model(checkpoint)) < WIDE_BYTES / 2
    assert peak_of(lambda: load_text_model(checkpoint)) > WIDE_BYTES


def test_a_file_with_vision_weights_only_is_not_even_opened(tmp_path: Path) -> None:
    weights = read_weights()
    text = {name: array for name, array in weights.items() if "visual" not in name}
    folder = copy_checkpoint(tmp_path / "apart", weights=text)
    vision = folder / "vision.safetensors"
    mx.save_safetensors(str(vision), {name: array for name, array in weights.items() if "visual" in name})
    checkpoint = open_checkpoint(folder)

    vision.unlink()

    engine = Engine(load_text_model(checkpoint), checkpoint.eos_token_ids)
    assert generate(engine, reference_prompt(0), make_rows(), GREEDY) == expected_rows(0)
