"""A checkpoint in the Hugging Face layout: its configuration and the headers of its weight files, read without MLX."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from store.config import (
    ImageConfig,
    Section,
    TextConfig,
    VisionConfig,
    read_image_config,
    read_json,
    read_text_config,
    read_vision_config,
)
from store.errors import WeightsError
from store.weights import (
    INDEX,
    Tensor,
    check_tensors,
    hf_name,
    read_headers,
    text_tensors,
    vision_tensors,
    weight_files,
)

__all__ = ["Checkpoint", "ImageConfig", "Tensor", "TextConfig", "VisionConfig", "open_checkpoint"]

MODEL_TYPES = ("glm4v", "glm46v")      # one network under two names
DOWNLOAD = ("Download the checkpoint with `hf download zai-org/GLM-4.6V-Flash --local-dir vision_weights` "
            "and name its folder with --weights or GLM_WEIGHTS_DIR")
PICKLES = (".pt", ".pth", ".ckpt", ".pkl", ".pickle")
RAW = (".bin", ".npy", ".npz", ".raw", ".dat", ".f16", ".bf16", ".f32")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checked checkpoint; nothing of it is in memory but its configuration."""

    folder: Path
    model_type: str
    text: TextConfig
    vision: VisionConfig
    image: ImageConfig
    image_token_id: int
    eos_token_ids: tuple[int, ...]
    quantization: dict[str, Any] | None      # as MLX writes it: group_size, bits, mode, overrides by path
    tensors: dict[str, Tensor]               # by their names in the files
    chat_template: str
    tokenizer_file: Path
    files: tuple[Path, ...]                  # all that the fingerprint covers

    @property
    def has_vision(self) -> bool:
        """Tell whether the vision tower is there; `precompute` needs it, generating from embeddings does not."""
        return any(hf_name(name).startswith("model.visual.") for name in self.tensors)


def open_checkpoint(folder: Path) -> Checkpoint:
    """Check a folder of weights and read its configuration; raise WeightsError for the first thing that is wrong.

    All tensors of the text decoder must be there; those of the vision tower all or none.
    """
    try:
        return _open(folder)
    except OSError as error:
        raise WeightsError(f"{folder}: expected a folder of weights that can be read, found: {error}") from None


def _open(folder: Path) -> Checkpoint:
    config = _open_config(folder)
    text = read_text_config(config)
    vision = read_vision_config(config, text)
    preprocessor, preprocessor_file = _open_preprocessor(folder)
    quantization = _quantization(config)
    files = _weight_files(folder)
    tensors = read_headers(files)
    check_tensors(folder, tensors, text_tensors(text), quantization)
    if any(hf_name(name).startswith("model.visual.") for name in tensors):
        check_tensors(folder, tensors, vision_tensors(vision), quantization)
    template, template_file = _chat_template(folder)
    eos_token_ids, image_token_id = _eos_token_ids(folder, config), _image_token_id(config)
    if max(*eos_token_ids, image_token_id) >= text.vocab_size:
        raise WeightsError(f"{config.file}: expected token ids below vocab_size ({text.vocab_size}), found "
                           f"image_token_id {image_token_id} and eos_token_id {list(eos_token_ids)}")
    small = ("config.json", "generation_config.json", "tokenizer.json", preprocessor_file, template_file, INDEX)
    return Checkpoint(
        folder=folder, model_type=config.values["model_type"], text=text, vision=vision,
        image=read_image_config(preprocessor, vision), image_token_id=image_token_id, eos_token_ids=eos_token_ids,
        quantization=quantization, tensors=tensors, chat_template=template, tokenizer_file=_tokenizer_file(folder),
        files=tuple(folder / name for name in small if (folder / name).is_file()) + files,
    )


def _open_config(folder: Path) -> Section:
    """Open config.json of a folder that holds a supported model."""
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise WeightsError(f"{folder}: expected a folder of weights, found {found}. {DOWNLOAD}")
    if not (folder / "config.json").is_file():
        raise WeightsError(_without_config(folder))
    config = Section(folder / "config.json", read_json(folder / "config.json"))
    kind = config.values.get("model_type")
    if "moe" in f"{kind} {config.section('text_config', optional=True).values.get('model_type')}":
        raise WeightsError(f"{config.file}: expected GLM-4.6V-Flash (model_type {' or '.join(MODEL_TYPES)}), found "
                           f"{kind}: that is the 106B GLM-4.6V, another network with experts. {DOWNLOAD}")
    if kind not in MODEL_TYPES:
        raise config.wrong("model_type", f"{' or '.join(MODEL_TYPES)} (GLM-4.6V-Flash and GLM-4.1V)")
    return config


def _without_config(folder: Path) -> str:
    """Say what a folder without config.json holds."""
    names = sorted(path.name for path in folder.iterdir())
    if any(name.endswith(".safetensors") for name in names):
        return f"{folder}: expected config.json beside the safetensors files, found none. {DOWNLOAD}"
    if pickles := _pickles(names):
        return f"{folder}: expected safetensors files, found {pickles[0]}: pickle files are not read. {DOWNLOAD}"
    if raw := [name for name in names if name.endswith(RAW)]:
        return (f"{folder}: expected a Hugging Face folder, found raw weight files ({', '.join(raw[:3])}) without "
                f"config.json: the weight format of glm46v_mlx, which is not read any more. {DOWNLOAD}")
    found = ", ".join(names[:5]) if names else "an empty folder"
    return f"{folder}: expected config.json, found {found}. {DOWNLOAD}"


def _pickles(names: list[str]) -> list[str]:
    torch = [name for name in names if name.startswith("pytorch_model") and name.endswith(".bin")]
    return torch + [name for name in names if name.endswith(PICKLES)]


def _weight_files(folder: Path) -> tuple[Path, ...]:
    files = weight_files(folder)
    if files:
        return files
    names = sorted(path.name for path in folder.iterdir())
    if pickles := _pickles(names):
        raise WeightsError(f"{folder}: expected safetensors files, found {', '.join(pickles[:3])}: pickle files can "
                           f"run code when they are read, so they are not. {DOWNLOAD}")
    other = ", ".join(name for name in names if name.endswith((".gguf", *RAW))) or "none"
    raise WeightsError(f"{folder}: expected safetensors files beside config.json, found {other}. {DOWNLOAD}")


def _quantization(config: Section) -> dict[str, Any] | None:
    for key in ("quantization", "quantization_config"):
        if key in config:
            values = config.section(key).values
            if "quant_method" in values:
                raise config.wrong(key, "MLX's quantization (group_size, bits) or none")
            return values
    return None


def _open_preprocessor(folder: Path) -> tuple[Section, str]:
    """Open preprocessor_config.json; newer folders keep it inside processor_config.json, some have neither."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            whole = Section(folder / name, read_json(folder / name))
            return (whole.section("image_processor") if "image_processor" in whole else whole), name
    return Section(folder / "preprocessor_config.json", {}), "preprocessor_config.json"


def _eos_token_ids(folder: Path, config: Section) -> tuple[int, ...]:
    """Read the tokens that end an answer: generation_config.json's, else config.json's."""
    places = [config.section("text_config"), config]
    file = folder / "generation_config.json"
    if file.is_file():
        places.insert(0, Section(file, read_json(file)))
    for place in places:
        if ids := place.ids("eos_token_id"):
            return ids
    raise WeightsError(f"{file}: expected eos_token_id here or in config.json, found neither: no answer would end")


def _image_token_id(config: Section) -> int:
    ids = config.ids("image_token_id") or config.ids("image_token_index")
    if len(ids) != 1:
        raise config.wrong("image_token_id", "one token id")
    return ids[0]


def _tokenizer_file(folder: Path) -> Path:
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise WeightsError(f"{folder}: expected tokenizer.json, found none. {DOWNLOAD}")
    return file


def _chat_template(folder: Path) -> tuple[str, str]:
    """Read the chat template and name its file: its own, or inside one of two JSON files."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8"), file.name
        except (OSError, UnicodeDecodeError) as error:
            raise WeightsError(f"{file}: expected a template in UTF-8: {error}; download it again") from None
    for name in ("chat_template.json", "tokenizer_config.json"):
        template = read_json(folder / name).get("chat_template") if (folder / name).is_file() else None
        if isinstance(template, list):      # several by name, as some tokenizers keep them
            named = [entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default"]
            template = named[0].get("template") if named else None
        if isinstance(template, str):
            return template, name
    raise WeightsError(f"{folder}: expected a chat template (chat_template.jinja, or chat_template in "
                       f"tokenizer_config.json), found none. {DOWNLOAD}")
