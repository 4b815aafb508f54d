"""Make a random GLM-4.6V checkpoint in the Hugging Face layout: real architecture, real files, texts that mean nothing.

    python benchmarks/make_checkpoint.py demo/weights --preset tiny --seed 1

tiny    16 tokens an image, under 1 MB: to try every command in seconds
middle  256 tokens an image, 450 MB in float32: heavy enough to measure speed, small enough for a CPU

The same preset and seed give the same files. It says nothing about the quality of answers.
"""

import argparse
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

PATCH, FRAMES, MERGE = 14, 2, 2       # pixels of a patch's side, frames of a patch, patches of a merge cell's side
SPECIAL = (                           # GLM-4.6V's own tokens, in the order of their ids
    "<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>", "<|assistant|>",
    "<|observation|>", "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>", "<think>",
    "</think>", "/nothink", "<|begin_of_box|>", "<|end_of_box|>", "<|image|>", "<|video|>",
)
EOS = tuple(SPECIAL.index(token) for token in ("<|endoftext|>", "<|user|>", "<|observation|>"))
WORDS = (
    "image", "A", "B", "the", "is", "and", "than", "more", "less", "both", "about", "same", "Compare", "these", "two",
    "images", "shows", "while", "brighter", "darker", "warmer", "cooler", "sharper", "softer", "colourful", "grey",
    "contrast", "light", "shadow", "sky", "water", "stone", "leaves", "face", "table", "sun", "wall", "red", "orange",
    "green", "blue",
)
TEMPLATE = """\
[gMASK]<sop>
{%- for message in messages %}
{%- if message.role == 'assistant' %}<|assistant|>{{ '\\n' }}{{ message.content }}
{%- else %}<|{{ message.role }}|>{{ '\\n' }}
{%- if message.content is string %}{{ message.content }}
{%- else %}
{%- for part in message.content %}
{%- if part.type == 'image' %}<|begin_of_image|><|image|><|end_of_image|>
{%- elif part.type == 'text' %}{{ part.text }}
{%- endif %}
{%- endfor %}
{%- endif %}
{%- if message.role == 'user' and enable_thinking is defined and not enable_thinking %}/nothink{%- endif %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|assistant|>{{ '\\n' }}
{%- if enable_thinking is defined and not enable_thinking %}<think></think>{{ '\\n' }}{%- endif %}
{%- endif %}
"""

Shapes = Iterator[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class Preset:
    """The sizes of a checkpoint; out_hidden_size and the vision blocks' MLP are the decoder's width."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    vocab: int
    vision_hidden: int
    vision_depth: int
    vision_heads: int
    merger: int
    side: int          # pixels of a square image; (side / 28)^2 tokens

    @property
    def head_dim(self) -> int:
        """Return the width of a head, half of which is rotated."""
        return self.hidden // self.heads

    @property
    def mrope_section(self) -> list[int]:
        """Split the rotated frequencies over time, rows and columns as GLM-4.6V does: 8, 12, 12 of 32."""
        frequencies = self.head_dim // 4
        return [frequencies - 2 * (3 * frequencies // 8), 3 * frequencies // 8, 3 * frequencies // 8]


PRESETS = {
    "tiny": Preset(hidden=64, layers=2, heads=2, kv_heads=1, mlp=96, vocab=512,
                   vision_hidden=32, vision_depth=2, vision_heads=2, merger=48, side=112),
    "middle": Preset(hidden=1024, layers=8, heads=8, kv_heads=2, mlp=3424, vocab=4096,
                     vision_hidden=64, vision_depth=2, vision_heads=2, merger=128, side=448),
}


def text_shapes(p: Preset) -> Shapes:
    """List the decoder's tensors."""
    model, kv = "model.language_model.", p.kv_heads * p.head_dim
    yield f"{model}embed_tokens.weight", (p.vocab, p.hidden)
    yield f"{model}norm.weight", (p.hidden,)
    yield "lm_head.weight", (p.vocab, p.hidden)
    for i in range(p.layers):
        layer = f"{model}layers.{i}."
        for norm in ("input", "post_self_attn", "post_attention", "post_mlp"):
            yield f"{layer}{norm}_layernorm.weight", (p.hidden,)
        for name, width in (("q", p.hidden), ("k", kv), ("v", kv)):
            yield f"{layer}self_attn.{name}_proj.weight", (width, p.hidden)
            yield f"{layer}self_attn.{name}_proj.bias", (width,)
        yield f"{layer}self_attn.o_proj.weight", (p.hidden, p.hidden)
        yield f"{layer}mlp.gate_up_proj.weight", (2 * p.mlp, p.hidden)
        yield f"{layer}mlp.down_proj.weight", (p.hidden, p.mlp)


def vision_shapes(p: Preset) -> Shapes:
    """List the vision tower's tensors."""
    visual, width = "model.visual.", p.vision_hidden
    yield f"{visual}patch_embed.proj.weight", (width, 3, FRAMES, PATCH, PATCH)
    yield f"{visual}patch_embed.proj.bias", (width,)
    yield f"{visual}embeddings.position_embedding.weight", ((p.side // PATCH) ** 2, width)
    yield f"{visual}post_conv_layernorm.weight", (width,)
    yield f"{visual}post_layernorm.weight", (width,)
    for i in range(p.vision_depth):
        block = f"{visual}blocks.{i}."
        yield f"{block}norm1.weight", (width,)
        yield f"{block}norm2.weight", (width,)
        yield f"{block}attn.qkv.weight", (3 * width, width)
        yield f"{block}attn.proj.weight", (width, width)
        yield f"{block}mlp.gate_proj.weight", (p.hidden, width)
        yield f"{block}mlp.up_proj.weight", (p.hidden, width)
        yield f"{block}mlp.down_proj.weight", (width, p.hidden)
    yield f"{visual}downsample.weight", (p.hidden, width, MERGE, MERGE)
    yield f"{visual}downsample.bias", (p.hidden,)
    yield f"{visual}merger.proj.weight", (p.hidden, p.hidden)
    yield f"{visual}merger.post_projection_norm.weight", (p.hidden,)
    yield f"{visual}merger.post_projection_norm.bias", (p.hidden,)
    yield f"{visual}merger.gate_proj.weight", (p.merger, p.hidden)
    yield f"{visual}merger.up_proj.weight", (p.merger, p.hidden)
    yield f"{visual}merger.down_proj.weight", (p.hidden, p.merger)


def make_tensors(p: Preset, seed: int, speakable: list[int]) -> dict[str, NDArray[np.float32]]:
    """Draw every tensor: matrices by their fan-in, norms around 1, biases around 0; the head favours some tokens."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in (*text_shapes(p), *vision_shapes(p)):
        spread = 0.1 if len(shape) == 1 else float(np.prod(shape[1:])) ** -0.5
        tensor = rng.standard_normal(shape, dtype=np.float32) * np.float32(spread)
        tensors[name] = tensor + 1 if "norm" in name and name.endswith("weight") else tensor
    # Loose bytes and special tokens in the middle of a text would look like faults of the program.
    tensors["lm_head.weight"][np.setdiff1d(np.arange(p.vocab), speakable)] = 0
    return tensors


def corpus(seed: int) -> Iterator[str]:
    """Write sentences of photographers' words, then of made-up words, so that any vocabulary fills."""
    rng = np.random.default_rng(seed)
    for words in rng.choice(WORDS, size=(6000, 12)):
        yield " ".join(words) + "."
    syllables = [consonant + vowel for consonant in "bcdfghjklmnprstvwz" for vowel in "aeiou"]
    for words in rng.choice(syllables, size=(8000, 6, 3)):
        yield " ".join("".join(word) for word in words)


def make_tokenizer(vocab: int) -> Tokenizer:
    """Train a byte-level BPE of exactly `vocab` tokens, GLM's special ones first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=vocab, special_tokens=list(SPECIAL), initial_alphabet=alphabet,
                                  show_progress=False)
    tokenizer.train_from_iterator(corpus(0), trainer)
    assert tokenizer.get_vocab_size() == vocab, tokenizer.get_vocab_size()
    return tokenizer


def find_speakable(tokenizer: Tokenizer) -> list[int]:
    """Find the tokens that may be likely: those that begin a word, and the one that ends a text."""
    vocab = tokenizer.get_vocab()
    return sorted([EOS[0], *(vocab[token] for token in vocab if re.fullmatch("Ġ[A-Za-z]{3,}", token))])


def make_config(p: Preset) -> dict[str, Any]:
    """Return config.json in the newer style, with `rope_parameters`."""
    text = {
        "model_type": "glm4v_text", "hidden_size": p.hidden, "intermediate_size": p.mlp, "num_hidden_layers": p.layers,
        "num_attention_heads": p.heads, "num_key_value_heads": p.kv_heads, "vocab_size": p.vocab, "hidden_act": "silu",
        "rms_norm_eps": 1e-5, "max_position_embeddings": 32768, "eos_token_id": list(EOS), "pad_token_id": EOS[0],
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0, "partial_rotary_factor": 0.5,
                            "mrope_section": p.mrope_section},
    }
    vision = {
        "model_type": "glm4v_vision", "depth": p.vision_depth, "hidden_size": p.vision_hidden,
        "num_heads": p.vision_heads, "intermediate_size": p.merger, "out_hidden_size": p.hidden, "image_size": p.side,
        "patch_size": PATCH, "temporal_patch_size": FRAMES, "spatial_merge_size": MERGE, "in_channels": 3,
        "hidden_act": "silu", "rms_norm_eps": 1e-5, "attention_bias": False,
        "rope_parameters": {"rope_type": "axial", "rope_theta": 10000.0},
    }
    ids = {f"{name}_token_id": SPECIAL.index(token) for name, token in (
        ("image", "<|image|>"), ("image_start", "<|begin_of_image|>"), ("image_end", "<|end_of_image|>"),
        ("video", "<|video|>"), ("video_start", "<|begin_of_video|>"), ("video_end", "<|end_of_video|>"))}
    return {"architectures": ["Glm4vForConditionalGeneration"], "model_type": "glm4v", "dtype": "float32",
            "tie_word_embeddings": False, "eos_token_id": list(EOS), **ids,
            "text_config": text, "vision_config": vision}


def make_small_files(p: Preset) -> dict[str, dict[str, Any]]:
    """Return the JSON files beside the weights, by name."""
    return {
        "config.json": make_config(p),
        "generation_config.json": {"eos_token_id": list(EOS), "pad_token_id": EOS[0], "do_sample": True,
                                   "temperature": 0.8, "top_p": 0.6, "top_k": 2},
        "preprocessor_config.json": {
            "image_processor_type": "Glm46VImageProcessor", "processor_class": "Glm46VProcessor", "do_rescale": True,
            "patch_size": PATCH, "temporal_patch_size": FRAMES, "merge_size": MERGE,
            "size": {"shortest_edge": 112 * 112, "longest_edge": FRAMES * p.side * p.side},
            "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]},
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": SPECIAL[0],
                                  "pad_token": SPECIAL[0], "extra_special_tokens": list(SPECIAL[1:])},
    }


def make_checkpoint(folder: Path, preset: str, seed: int) -> None:
    """Write the checkpoint into a folder; files of the same names are replaced."""
    p = PRESETS[preset]
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in make_small_files(p).items():
        (folder / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(TEMPLATE.rstrip("\n"), encoding="utf-8")
    tokenizer = make_tokenizer(p.vocab)
    tokenizer.save(str(folder / "tokenizer.json"))
    tensors = make_tensors(p, seed, find_speakable(tokenizer))
    (folder / "model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))


def main() -> None:
    """Read the command line, make the checkpoint, say what it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="tiny")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    make_checkpoint(args.folder, args.preset, args.seed)
    size = sum(file.stat().st_size for file in args.folder.iterdir()) / 1e6
    print(f"{args.folder}: a random checkpoint ({args.preset}, {size:.1f} MB); what it writes means nothing")


if __name__ == "__main__":
    main()
