"""Opening a checkpoint: what is taken, and what is refused by name before anything is enqueued."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from store.checkpoint import Checkpoint, open_checkpoint
from store.errors import WeightsError
from store.weights import hf_name, mlx_name, packing_of, stored_shape, text_tensors, vision_tensors

SMALL = Path(__file__).parent / "data" / "small" / "weights"
QUERIES = "model.language_model.layers.1.self_attn.q_proj.weight"

Tensors = dict[str, NDArray[Any]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Copy the small checkpoint, so that a test can damage it."""
    return Path(shutil.copytree(SMALL, tmp_path / "weights"))


def edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


def edit_tensors(folder: Path, change: Callable[[Tensors], Tensors | None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors) or tensors, folder / "model.safetensors")


def refusal(folder: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        open_checkpoint(folder)
    return str(caught.value)


def split_in_two(folder: Path) -> None:
    """Store the tensors in two files with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = [f"model-{part:05d}-of-00002.safetensors" for part in (1, 2)]
    weight_map = {name: names[place % 2] for place, name in enumerate(sorted(tensors))}
    for file in names:
        save_file({name: tensors[name] for name in tensors if weight_map[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def pack(tensors: Tensors, bits: int, group: int) -> Tensors:
    """Name tensors as mlx-community does, and give the text decoder's matrices the shapes of MLX's quantization."""
    packed: Tensors = {}
    for hf, tensor in tensors.items():
        name = mlx_name(hf)
        if tensor.ndim > 2:
            packed[name] = np.ascontiguousarray(np.moveaxis(tensor, 1, -1))
        elif tensor.ndim == 2 and name.startswith("language_model."):
            layer, (rows, columns) = name.removesuffix(".weight"), tensor.shape
            packed[name] = np.zeros((rows, columns * bits // 32), np.uint32)
            packed[f"{layer}.scales"] = packed[f"{layer}.biases"] = np.zeros((rows, columns // group), np.float16)
        else:
            packed[name] = tensor
    return packed


def quantize(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: pack(tensors, 4, 32))
    edit(folder / "config.json", lambda config: config.update(quantization={"group_size": 32, "bits": 4}))


def test_the_small_checkpoint_is_read_as_transformers_wrote_it() -> None:
    checkpoint = open_checkpoint(SMALL)

    assert checkpoint.model_type == "glm4v"
    assert checkpoint.text.n_layers == 2
    assert checkpoint.text.head_dim == 32
    assert checkpoint.text.rope_theta == 500000.0
    assert checkpoint.text.rotary_dims == 16
    assert checkpoint.text.mrope_section == (2, 3, 3)
    assert checkpoint.vision.table_side == 24
    assert checkpoint.image.side == 448
    assert checkpoint.image.mean == (0.48145466, 0.4578275, 0.40821073)
    assert checkpoint.image_token_id == 19
    assert checkpoint.eos_token_ids == (0, 7, 9, 195)
    assert checkpoint.has_vision
    assert checkpoint.quantization is None
    assert "{%- if add_generation_prompt %}" in checkpoint.chat_template
    assert {file.name for file in checkpoint.files} == {
        "config.json", "generation_config.json", "tokenizer.json", "preprocessor_config.json", "chat_template.jinja",
        "model.safetensors",
    }


def test_the_expected_tensors_are_exactly_those_of_transformers() -> None:
    checkpoint = open_checkpoint(SMALL)

    expected = text_tensors(checkpoint.text) | vision_tensors(checkpoint.vision)

    assert expected == {name: tensor.shape for name, tensor in checkpoint.tensors.items()}


@pytest.mark.parametrize("model_type", ["glm4v", "glm46v"])
def test_both_names_of_the_network_are_taken(folder: Path, model_type: str) -> None:
    edit(folder / "config.json", lambda config: config.update(model_type=model_type))

    assert open_checkpoint(folder).model_type == model_type


def test_several_files_with_an_index_are_taken_and_all_are_fingerprinted(folder: Path) -> None:
    split_in_two(folder)

    checkpoint = open_checkpoint(folder)

    assert {tensor.file.name for tensor in checkpoint.tensors.values()} == {
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
    }
    assert "model.safetensors.index.json" in {file.name for file in checkpoint.files}
    assert len(checkpoint.files) == 8


def test_several_files_without_an_index_are_taken(folder: Path) -> None:
    split_in_two(folder)
    (folder / "model.safetensors.index.json").unlink()

    assert len(open_checkpoint(folder).tensors) == len(open_checkpoint(SMALL).tensors)


def test_a_hidden_file_of_macos_beside_the_weights_is_no_weight_file(folder: Path) -> None:
    (folder / "._model.safetensors").write_bytes(b"resource fork")

    assert len(open_checkpoint(folder).files) == 6


def test_sixteen_bit_tensors_are_taken(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: {name: tensor.astype(np.float16) for name, tensor in tensors.items()})

    assert open_checkpoint(folder).tensors["lm_head.weight"].dtype == "F16"


def test_a_quantized_folder_of_mlx_is_taken(folder: Path) -> None:
    quantize(folder)

    checkpoint = open_checkpoint(folder)

    assert checkpoint.quantization == {"group_size": 32, "bits": 4}
    assert checkpoint.tensors["language_model.lm_head.weight"].dtype == "U32"


def test_a_layer_with_its_own_quantization_is_checked_by_that(folder: Path) -> None:
    layer = "language_model.lm_head"
    quantize(folder)
    edit(folder / "config.json", lambda config: config["quantization"].update({layer: {"group_size": 32, "bits": 8}}))

    def eight_bits(tensors: Tensors) -> None:
        tensors[f"{layer}.weight"] = np.zeros((480, 64 * 8 // 32), np.uint32)

    assert "language_model.lm_head.weight: expected [480, 16]" in refusal(folder)
    edit_tensors(folder, eight_bits)
    assert open_checkpoint(folder).quantization is not None


def test_a_quantized_layer_without_its_biases_is_named(folder: Path) -> None:
    quantize(folder)

    def lose(tensors: Tensors) -> None:
        del tensors["language_model.model.layers.0.mlp.down_proj.biases"]

    edit_tensors(folder, lose)
    assert "language_model.model.layers.0.mlp.down_proj.biases is missing" in refusal(folder)


def test_a_mode_without_biases_needs_none(folder: Path) -> None:
    quantize(folder)
    edit(folder / "config.json", lambda config: config["quantization"].update(mode="mxfp4"))
    edit_tensors(folder, lambda tensors: {k: v for k, v in tensors.items() if not k.endswith(".biases")})

    assert packing_of(open_checkpoint(folder).quantization or {}, "language_model.lm_head").mode == "mxfp4"


def test_quantized_tensors_without_a_word_in_the_config_are_refused(folder: Path) -> None:
    quantize(folder)
    edit(folder / "config.json", lambda config: config.pop("quantization"))

    assert "is quantized; expected how in config.json's `quantization`" in refusal(folder)


def test_another_makers_quantization_is_refused(folder: Path) -> None:
    edit(folder / "config.json", lambda config: config.update(quantization_config={"quant_method": "fp8"}))

    assert "quantization_config: expected MLX's quantization" in refusal(folder)


@pytest.mark.parametrize("name", [
    "lm_head.weight", "model.visual.blocks.0.norm1.weight", "model.language_model.layers.3.self_attn.q_proj.bias",
])
def test_a_name_goes_to_mlx_and_back(name: str) -> None:
    assert mlx_name(name) != name
    assert hf_name(mlx_name(name)) == hf_name(name) == name


def test_convolutions_stand_channels_last_in_mlx_folders_only() -> None:
    shape = (1536, 3, 2, 14, 14)

    assert stored_shape("vision_tower.patch_embed.proj.weight", shape) == (1536, 2, 14, 14, 3)
    assert stored_shape("model.visual.patch_embed.proj.weight", shape) == shape


def test_a_folder_without_a_vision_tower_is_enough_to_generate(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: {k: v for k, v in tensors.items() if not k.startswith("model.visual.")})

    assert not open_checkpoint(folder).has_vision


def test_rope_theta_is_found_in_the_older_place(folder: Path) -> None:
    def older(config: dict[str, Any]) -> None:
        text = config["text_config"]
        rope = text.pop("rope_parameters")
        text |= {"rope_theta": 12345.0, "partial_rotary_factor": 0.5,
                 "rope_scaling": {"rope_type": "default", "mrope_section": rope["mrope_section"]}}

    edit(folder / "config.json", older)
    text = open_checkpoint(folder).text

    assert (text.rope_theta, text.mrope_section, text.rotary_dims) == (12345.0, (2, 3, 3), 16)


def test_a_checkpoint_without_rope_theta_is_refused(folder: Path) -> None:
    edit(folder / "config.json", lambda config: config["text_config"]["rope_parameters"].pop("rope_theta"))

    assert "expected rope_theta in text_config.rope_parameters or in text_config, found neither" in refusal(folder)


def test_a_stretched_rope_is_refused(folder: Path) -> None:
    edit(folder / "config.json", lambda config: config["text_config"]["rope_parameters"].update(rope_type="yarn"))

    assert "rope_type: expected 'default'" in refusal(folder)


def test_a_section_that_does_not_fill_the_rotated_dimensions_is_refused(folder: Path) -> None:
    edit(folder / "config.json", lambda config: config["text_config"]["rope_parameters"].pop("mrope_section"))

    assert "mrope_section: expected a sum of 8" in refusal(folder)


def test_a_missing_folder_says_how_to_download(tmp_path: Path) -> None:
    message = refusal(tmp_path / "none")

    assert "expected a folder of weights, found nothing" in message
    assert "hf download zai-org/GLM-4.6V-Flash --local-dir vision_weights" in message
    assert "--weights or GLM_WEIGHTS_DIR" in message


def test_a_file_in_place_of_the_folder_is_refused(folder: Path) -> None:
    assert "expected a folder of weights, found a file" in refusal(folder / "config.json")


@pytest.mark.parametrize("names", [["vision.bin", "text.bin"], ["embed.npy"], ["weights.npz"]])
def test_the_ancestors_weights_are_recognised_and_refused(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"\0" * 16)

    message = refusal(tmp_path)

    assert "the weight format of glm46v_mlx" in message
    assert sorted(names)[0] in message
    assert "hf download" in message


@pytest.mark.parametrize("with_config", [True, False])
def test_pickle_files_are_never_read(folder: Path, with_config: bool) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    if not with_config:
        (folder / "config.json").unlink()

    message = refusal(folder)

    assert "pytorch_model.bin: pickle files" in message
    assert "hf download" in message


def test_an_empty_folder_and_one_without_config_are_refused(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    (folder / "config.json").unlink()

    assert "expected config.json, found an empty folder" in refusal(tmp_path / "empty")
    assert "expected config.json beside the safetensors files" in refusal(folder)


def test_a_config_that_is_no_json_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text("{")

    assert "config.json: expected JSON" in refusal(folder)


@pytest.mark.parametrize(("model_type", "expected"), [
    ("glm4v_moe", "found glm4v_moe: that is the 106B GLM-4.6V, another network with experts"),
    ("qwen2_vl", "model_type: expected glm4v or glm46v (GLM-4.6V-Flash and GLM-4.1V), found 'qwen2_vl'"),
    (None, "model_type: expected glm4v or glm46v (GLM-4.6V-Flash and GLM-4.1V), found None"),
])
def test_another_model_is_refused_by_name(folder: Path, model_type: str | None, expected: str) -> None:
    edit(folder / "config.json", lambda config: config.update(model_type=model_type))

    assert expected in refusal(folder)


def test_the_moe_model_in_the_newer_wrapper_is_refused(folder: Path) -> None:
    def moe(config: dict[str, Any]) -> None:
        config["model_type"] = "glm46v"
        config["text_config"]["model_type"] = "glm4v_moe_text"

    edit(folder / "config.json", moe)

    assert "another network with experts" in refusal(folder)


@pytest.mark.parametrize(("section", "key", "value", "expected"), [
    ("text_config", "hidden_size", None, "text_config.hidden_size: expected an integer from 1 to 2147483647, found"),
    ("text_config", "num_hidden_layers", "40", "text_config.num_hidden_layers: expected an integer"),
    ("text_config", "num_hidden_layers", 10**9, "text_config.num_hidden_layers: expected an integer from 1 to 1023"),
    ("text_config", "num_key_value_heads", 3, "text_config.num_key_value_heads: expected a divisor of"),
    ("text_config", "rms_norm_eps", -1, "text_config.rms_norm_eps: expected a number above 0, found -1"),
    ("text_config", "rope_parameters", 5, "text_config.rope_parameters: expected an object, found 5"),
    ("vision_config", "depth", True, "vision_config.depth: expected an integer"),
    ("vision_config", "out_hidden_size", 32, "vision_config.out_hidden_size: expected text_config's hidden_size (64)"),
])
def test_a_wrong_value_in_the_config_is_named(folder: Path, section: str, key: str, value: Any, expected: str) -> None:
    edit(folder / "config.json", lambda config: config[section].update({key: value}))

    assert expected in refusal(folder)


def test_a_config_without_a_section_is_refused(folder: Path) -> None:
    edit(folder / "config.json", lambda config: config.pop("vision_config"))

    assert "vision_config: expected an object, found nothing" in refusal(folder)


def test_no_safetensors_files_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()

    assert "expected safetensors files beside config.json, found none" in refusal(folder)


def test_a_file_that_the_index_names_and_the_folder_lacks_is_named(folder: Path) -> None:
    split_in_two(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()

    message = refusal(folder)

    assert "names 2 files, and 1 of them are not there: model-00002-of-00002.safetensors" in message
    assert "start it again" in message


def test_an_index_cannot_lead_out_of_the_folder(folder: Path) -> None:
    index = {"weight_map": {"lm_head.weight": "../weights/model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    assert "expected a weight_map from tensors to file names" in refusal(folder)


def test_truncated_weights_are_refused_with_the_arithmetic(folder: Path) -> None:
    file = folder / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:-1000])

    message = refusal(folder)

    assert f"expected {len(data):,} bytes by its header, found {len(data) - 1000:,}" in message
    assert "start it again" in message


@pytest.mark.parametrize(("data", "expected"), [
    (b"", "expected a safetensors header, found 0 bytes"),
    (b"\xff" * 100, "expected a safetensors header, found 100 bytes"),
    (b"\x20" + b"\0" * 7 + b"{" * 40, "invalid JSON in header"),
    (b"version https://git-lfs.github.com/spec/v1\n", "found a Git LFS pointer of 43 bytes"),
])
def test_a_broken_header_is_refused(folder: Path, data: bytes, expected: str) -> None:
    (folder / "model.safetensors").write_bytes(data)

    assert expected in refusal(folder)


def test_a_missing_tensor_is_named(folder: Path) -> None:
    def lose(tensors: Tensors) -> None:
        del tensors[QUERIES]

    edit_tensors(folder, lose)

    assert f"{QUERIES} is missing: expected 29 tensors, found 28" in refusal(folder)


def test_a_missing_tensor_of_an_mlx_folder_is_named_as_it_stands_there(folder: Path) -> None:
    quantize(folder)

    def lose(tensors: Tensors) -> None:
        del tensors["language_model.model.norm.weight"], tensors["language_model.lm_head.weight"]

    edit_tensors(folder, lose)

    assert "language_model.model.norm.weight is missing and 1 more" in refusal(folder)


def test_a_missing_tensor_of_the_vision_tower_is_named(folder: Path) -> None:
    def lose(tensors: Tensors) -> None:
        del tensors["model.visual.merger.proj.weight"]

    edit_tensors(folder, lose)

    assert "model.visual.merger.proj.weight is missing" in refusal(folder)


def test_a_tensor_of_another_shape_is_named(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: {**tensors, QUERIES: np.zeros((64, 65), np.float32)})

    assert f"{QUERIES}: expected [64, 64] in F32 or BF16 or F16, found [64, 65] in F32" in refusal(folder)


def test_a_tensor_of_another_type_is_named(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: {**tensors, QUERIES: np.zeros((64, 64), np.int8)})

    assert f"{QUERIES}: expected [64, 64] in F32 or BF16 or F16, found [64, 64] in I8" in refusal(folder)


def test_a_tensor_that_stands_in_two_files_is_refused(folder: Path) -> None:
    shutil.copy(folder / "model.safetensors", folder / "other.safetensors")

    assert "stands in model.safetensors too" in refusal(folder)


def test_tied_embeddings_need_no_head(folder: Path) -> None:
    edit(folder / "config.json", lambda config: config.update(tie_word_embeddings=True))
    edit_tensors(folder, lambda tensors: {k: v for k, v in tensors.items() if k != "lm_head.weight"})

    assert open_checkpoint(folder).text.tie_word_embeddings


def test_a_folder_without_tokenizer_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()

    assert "expected tokenizer.json, found none" in refusal(folder)


@pytest.mark.parametrize(("name", "template"), [
    ("tokenizer_config.json", "T"), ("chat_template.json", "T"),
    ("tokenizer_config.json", [{"name": "tool", "template": "U"}, {"name": "default", "template": "T"}]),
])
def test_a_template_inside_a_json_file_is_found(folder: Path, name: str, template: Any) -> None:
    (folder / "chat_template.jinja").unlink()
    (folder / name).write_text(json.dumps({"chat_template": template}))

    checkpoint = open_checkpoint(folder)

    assert checkpoint.chat_template == "T"
    assert folder / name in checkpoint.files


def test_a_folder_without_template_is_refused(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()

    assert "expected a chat template" in refusal(folder)


def test_the_ending_tokens_come_from_the_config_where_there_is_no_generation_config(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    edit(folder / "config.json", lambda config: config["text_config"].update(eos_token_id=7))

    assert open_checkpoint(folder).eos_token_ids == (7,)


def test_a_checkpoint_that_would_never_stop_is_refused(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    edit(folder / "config.json", lambda config: (config.pop("eos_token_id"), config["text_config"].pop("eos_token_id")))

    assert "expected eos_token_id here or in config.json, found neither" in refusal(folder)


def test_a_token_id_beyond_the_vocabulary_is_refused(folder: Path) -> None:
    edit(folder / "config.json", lambda config: config.update(image_token_id=480))

    assert "expected token ids below vocab_size (480), found image_token_id 480" in refusal(folder)


def images_with(folder: Path, **values: Any) -> Checkpoint:
    edit(folder / "preprocessor_config.json", lambda config: config.update(values))
    return open_checkpoint(folder)


@pytest.mark.parametrize(("size", "side"), [
    ({"longest_edge": 2 * 448 * 448}, 448),
    ({"longest_edge": 2 * 448 * 448 - 1}, 420),      # counts two frames
    ({"longest_edge": 2 * 28 * 28}, 28),
    ({"shortest_edge": 2 * 500 * 500, "longest_edge": 9633792}, 504),
    ({}, 448),
])
def test_the_side_is_the_largest_that_the_preprocessor_allows(folder: Path, size: dict[str, int], side: int) -> None:
    assert images_with(folder, size=size).image.side == side


def test_a_size_with_room_for_no_side_is_refused(folder: Path) -> None:
    edit(folder / "preprocessor_config.json", lambda config: config.update(size={"longest_edge": 1000}))

    assert "size.longest_edge: expected room for a side that is a multiple of 28" in refusal(folder)


def test_what_the_preprocessor_config_lacks_is_as_in_the_real_checkpoint(folder: Path) -> None:
    want = open_checkpoint(folder).image
    (folder / "preprocessor_config.json").unlink()

    assert open_checkpoint(folder).image == want


def test_a_preprocessor_inside_the_processor_config_is_found(folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": {"image_mean": [0.5, 0.5, 0.25]}}))

    assert open_checkpoint(folder).image.mean == (0.5, 0.5, 0.25)


@pytest.mark.parametrize(("key", "value"), [("patch_size", 16), ("image_mean", [0.5]), ("image_std", [0, 1, 1])])
def test_a_wrong_value_in_the_preprocessor_config_is_named(folder: Path, key: str, value: Any) -> None:
    edit(folder / "preprocessor_config.json", lambda config: config.update({key: value}))

    assert f"preprocessor_config.json: {key}: expected" in refusal(folder)
