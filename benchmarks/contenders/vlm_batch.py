"""mlx-vlm's BatchGenerator, fed as well as it can be; needs the packages of benchmarks/requirements.txt, not diptych.

Four things in mlx-vlm 0.7.10 would otherwise make its tokens wrong or let it wait:
- it reads `rope_theta` and `rope_scaling` flat in the text config and knows nothing of `rope_parameters`;
- it counts positions of images wrongly in a batched prefill, so that each row brings its own `position_ids`;
- it takes `rope_deltas` from the row only when the model has some already, else decoding begins at position 0;
- it admits rows only while a whole prefill batch has free places, so that it gets places for one more than there are.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
from inputs import Inputs, read_inputs
from mlx_vlm.generate import BatchGenerator
from mlx_vlm.utils import StoppingCriteria, load_model
from wire import Answer, serve


class Tokenizer:
    """The little of a tokenizer that the generator asks for: no token ends a row."""

    stopping_criteria = StoppingCriteria([])


class VlmBatch:
    """Answers a request for pairs with the tokens of each, `prefill` rows in one prefill."""

    def __init__(self, inputs: Inputs, prefill: int) -> None:
        """Load the decoder with its weights."""
        self._inputs, self._prefill = inputs, prefill
        self._model = load_language_model(inputs.weights)
        self._deltas = mx.array([[inputs.rope_delta]])
        self._positions = mx.array(inputs.positions)[:, None]      # [3, 1, tokens]
        self._model._rope_deltas = self._deltas

    def __call__(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Generate greedily; the clock runs from the first embedding to the last token."""
        pairs, new_tokens = request["pairs"], request["new_tokens"]
        began = time.perf_counter()
        generator = BatchGenerator(
            self._model, Tokenizer(), max_tokens=new_tokens, prefill_batch_size=self._prefill,
            completion_batch_size=len(pairs) + self._prefill, compute_logprobs=False)
        prompts, rows = [self._inputs.token_ids] * len(pairs), [self._row(*pair) for pair in pairs]
        uids = generator.insert(prompts, prompt_kwargs=rows)
        tokens: dict[int, list[int]] = {uid: [] for uid in uids}
        while generator.has_work:
            for response in generator.next()[1]:
                tokens[response.uid].append(response.token)
        generator.close()
        return {"seconds": time.perf_counter() - began, "tokens": [tokens[uid] for uid in uids]}

    def _row(self, a: int, b: int) -> dict[str, mx.array]:
        """Embed a pair's prompt, lazily: [1, tokens, hidden]."""
        text = self._model.model.embed_tokens(mx.array([self._inputs.token_ids]))
        parts, done = [], 0
        for image, (start, end) in zip((a, b), self._inputs.spans, strict=True):
            parts += [text[:, done:start], mx.array(self._inputs.embeddings[image])[None].astype(text.dtype)]
            done = end
        embeds = mx.concatenate([*parts, text[:, done:]], axis=1)
        return {"inputs_embeds": embeds, "position_ids": self._positions, "rope_deltas": self._deltas}


def load_language_model(weights: Path) -> Any:
    """Load the decoder from a copy of the checkpoint's folder whose config says the rotation where mlx-vlm reads it."""
    config = json.loads((weights / "config.json").read_text(encoding="utf-8"))
    rope = config["text_config"]["rope_parameters"]
    config["text_config"] |= {
        "rope_theta": rope["rope_theta"], "partial_rotary_factor": rope["partial_rotary_factor"],
        "rope_scaling": {"rope_type": "default", "mrope_section": rope["mrope_section"]}}
    with tempfile.TemporaryDirectory(prefix="dt-") as name:
        for file in weights.glob("*.safetensors"):
            (Path(name) / file.name).symlink_to(file.resolve())
        (Path(name) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        return load_model(Path(name)).language_model


def main() -> None:
    """Read the command line and answer the driver."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prefill", type=int, default=8)
    options = parser.parse_args()

    def load() -> Answer:
        return VlmBatch(read_inputs(options.folder), options.prefill)

    serve(load, ("mlx-vlm", "mlx"))


if __name__ == "__main__":
    main()
