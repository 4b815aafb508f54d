"""What a decode step must not do: compute logits that nobody reads, or sort a vocabulary."""

from typing import Any

import mlx.core as mx
import pytest
from reference import LIMITS, PAIRS, make_engine, make_rows, reference_prompt

from store.records import Sampling
from workers.model.text import TextModel
from workers.sampling import make_sampler, row_keys

BY_CANDIDATES = Sampling(top_k=5, top_p=0.9, max_tokens=3)
BY_BISECTION = Sampling(top_k=50, top_p=0.9, repetition_penalty=1.3, max_tokens=3)      # k * 64 is above the vocabulary
SORTS = ("sort", "argsort", "partition", "argpartition", "topk")


@pytest.fixture
def widths(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Note how many values each sort is over."""
    seen: list[int] = []

    def watch(name: str) -> None:
        sort = getattr(mx, name)

        def watched(values: mx.array, *args: Any, **kwargs: Any) -> mx.array:
            place = 1 if name in ("partition", "argpartition", "topk") else 0
            axis = kwargs.get("axis", args[place] if len(args) > place else -1)
            seen.append(values.size if axis is None else values.shape[axis])
            return sort(values, *args, **kwargs)

        monkeypatch.setattr(mx, name, watched)

    for name in SORTS:
        watch(name)
    return seen


@pytest.mark.parametrize("sampling", [BY_CANDIDATES, BY_BISECTION], ids=["candidates", "bisection"])
def test_logits_are_computed_for_the_last_position_only(sampling: Sampling, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, shapes, logits = make_engine(), [], TextModel.logits

    def watched(model: TextModel, hidden: mx.array) -> mx.array:
        shapes.append(hidden.shape)
        return logits(model, hidden)

    monkeypatch.setattr(TextModel, "logits", watched)
    steps = [step for step in engine.generate(reference_prompt(0), make_rows(), sampling, LIMITS) if step]

    assert len(steps) == 3
    assert shapes == [(len(PAIRS), engine.model.config.hidden_size)] * 3


@pytest.mark.parametrize("sampling", [BY_CANDIDATES, BY_BISECTION], ids=["candidates", "bisection"])
def test_no_decode_step_sorts_as_many_values_as_the_vocabulary_has(sampling: Sampling, widths: list[int]) -> None:
    engine = make_engine()

    list(engine.generate(reference_prompt(0), make_rows(), sampling, LIMITS))

    assert max(widths, default=0) < engine.model.config.vocab_size
    assert (len(widths) > 0) == (sampling is BY_CANDIDATES)      # the watch does see what is sorted


@pytest.mark.parametrize("top_k", [0, 1, 50, 2_000])
@pytest.mark.parametrize("top_p", [0.6, 1.0])
def test_no_sampler_sorts_a_vocabulary_as_large_as_the_models(top_k: int, top_p: float, widths: list[int]) -> None:
    vocab = 151_552

    mx.eval(make_sampler(Sampling(top_k=top_k, top_p=top_p))(mx.random.normal((2, vocab)), row_keys([1, 2]), None))

    # 2 sorts of about sqrt(k * vocab) values, rounded to a power of 2.
    assert max(widths, default=0) <= 2 * (top_k * vocab) ** 0.5 < vocab
