"""diptych's engine, with shared prefixes or without, within the limits that the worker would plan."""

import argparse
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from inputs import Inputs, read_inputs
from wire import Answer, serve

from jobs.limits import Limits
from jobs.memory import plan_memory
from jobs.prompt import build_prompt
from jobs.tokenizer import load_tokenizer
from store.checkpoint import open_checkpoint
from store.records import Sampling
from workers import device
from workers.engine import Engine
from workers.model.load import load_text_model
from workers.rows import Image, Row


class Ours:
    """Answers a request for pairs with the tokens of each, and with the prompt tokens that were computed."""

    def __init__(self, inputs: Inputs, *, sharing: bool) -> None:
        """Load the decoder with its weights; no token ends a row."""
        self._limit = device.memory_limit()
        device.apply_limit(self._limit)
        self._checkpoint = open_checkpoint(inputs.weights)
        self._prompt = build_prompt(self._checkpoint, load_tokenizer(self._checkpoint), inputs.text, thinking=False,
                                    grid=inputs.grid)
        assert list(self._prompt.token_ids) == inputs.token_ids
        self._engine = Engine(load_text_model(self._checkpoint), ())
        self._embeddings, self._sharing, self._round = inputs.embeddings, sharing, 0

    def __call__(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Generate greedily; the clock runs from the first embedding to the last token."""
        pairs, sampling = request["pairs"], Sampling(do_sample=False, max_tokens=request["new_tokens"])
        tokens: list[list[int]] = [[] for _ in pairs]
        limits, before = self._limits(len(pairs), sampling), asdict(self._engine.counts)
        self._round += 1
        began = time.perf_counter()
        for step in self._engine.generate(self._prompt, self._rows(pairs), sampling, limits):
            for token in step:
                tokens[token.key].append(token.id)
        seconds = time.perf_counter() - began
        counts = {name: count - before[name] for name, count in asdict(self._engine.counts).items()}
        return {"seconds": seconds, "tokens": tokens, "counts": counts, "limits": asdict(limits)}

    def _limits(self, pairs: int, sampling: Sampling) -> Limits:
        plan = plan_memory(self._checkpoint, self._prompt, sampling, self._limit, batch_size=pairs,
                           images=len(self._embeddings))
        return plan.limits if self._sharing else replace(plan.limits, prefix_bytes=0)

    def _rows(self, pairs: Iterable[Sequence[int]]) -> Iterator[Row]:
        for key, (a, b) in enumerate(pairs):
            yield Row(key, self._image(a), self._image(b), seed=0)

    def _image(self, index: int) -> Image:
        """Return an image under another name in every round, so that none begins with the prefixes of the last."""
        return Image((self._round, index), self._embeddings[index])


def main() -> None:
    """Read the command line and answer the driver."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--no-sharing", dest="sharing", action="store_false")
    options = parser.parse_args()

    def load() -> Answer:
        return Ours(read_inputs(options.folder), sharing=options.sharing)

    serve(load, ("diptych", "mlx"))


if __name__ == "__main__":
    main()
