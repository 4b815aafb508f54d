"""transformers' `generate` on embedded prompts; needs the packages of benchmarks/requirements.txt, not diptych.

Given embeddings in place of token ids, Glm4v cannot see where the images are and would count positions as in text; so
each call brings its `position_ids` [3, rows, tokens], which `generate` continues by one a token.

torch's fused attention for CPUs multiplies small matrices from its own threads. With an OpenBLAS that has threads too
in the place of torch's MKL it gets many times slower, so that `--attention eager` is the better one then.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from inputs import Inputs, read_inputs
from transformers import GenerationConfig, Glm4vForConditionalGeneration
from wire import Answer, serve


class HfGenerate:
    """Answers a request for pairs with the tokens of each, `batch` rows at a time."""

    def __init__(self, inputs: Inputs, batch: int, attention: str) -> None:
        """Load the model in float32."""
        self._inputs, self._batch = inputs, batch
        self._device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
        model = Glm4vForConditionalGeneration.from_pretrained(
            inputs.weights, dtype=torch.float32, attn_implementation=attention)
        self._model = model.to(self._device).eval()
        self._model.generation_config = GenerationConfig()      # the checkpoint's would sample, and stop early
        self._images = torch.from_numpy(inputs.embeddings)      # [images, tokens, hidden]
        self._positions = torch.from_numpy(inputs.positions)[:, None].to(self._device)      # [3, 1, tokens]

    def __call__(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Generate greedily; the clock runs from the first embedding to the last token."""
        pairs, tokens = request["pairs"], list[list[int]]()
        config = GenerationConfig(do_sample=False, max_new_tokens=request["new_tokens"], use_cache=True, pad_token_id=0)
        began = time.perf_counter()
        with torch.inference_mode():
            for start in range(0, len(pairs), self._batch):
                rows = self._embed(pairs[start : start + self._batch])
                positions = self._positions.expand(-1, len(rows), -1)
                out = self._model.generate(inputs_embeds=rows, position_ids=positions, generation_config=config)
                tokens += out.tolist()
        return {"seconds": time.perf_counter() - began, "tokens": tokens}

    def _embed(self, pairs: Sequence[Sequence[int]]) -> torch.Tensor:
        """Embed the prompt of some pairs: [rows, tokens, hidden]."""
        text = self._model.get_input_embeddings()(torch.tensor([self._inputs.token_ids], device=self._device))
        rows = text.repeat(len(pairs), 1, 1)
        for place, (start, end) in enumerate(self._inputs.spans):
            rows[:, start:end] = self._images[[pair[place] for pair in pairs]].to(rows)
        return rows


def main() -> None:
    """Read the command line and answer the driver."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--attention", choices=["sdpa", "eager"], default="sdpa")
    options = parser.parse_args()

    def load() -> Answer:
        return HfGenerate(read_inputs(options.folder), options.batch, options.attention)

    serve(load, ("transformers", "torch"))


if __name__ == "__main__":
    main()
