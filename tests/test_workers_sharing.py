"""Shared prefixes, slices and chunks: what is computed less often, later or in pieces gives the same tokens."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import mlx.core as mx
import numpy as np
import pytest
from conftest import WEIGHTS
from reference import (
    CASES,
    GREEDY,
    LIMITS,
    Generated,
    embeddings,
    expected_rows,
    generate,
    make_engine,
    make_prompt,
    make_rows,
    reference_prompt,
)

from jobs.limits import Limits
from jobs.prompt import Prompt
from store.checkpoint import open_checkpoint
from store.records import Sampling
from workers.engine import Engine
from workers.model.load import load_text_model
from workers.rows import Image, Row

ALONE = Limits(rows=1, chunk_tokens=4096, prefix_bytes=0)
SAMPLED = Sampling(temperature=1.2, top_k=5, top_p=0.95, repetition_penalty=1.2, max_tokens=8)
SHORT = Sampling(do_sample=False, max_tokens=1)
PROMPTS = {
    "images first": "Compare these two images.",
    "text first": "Look closely. <image_a> or <image_b>: which is sharper?",
    "B first": "<image_b> then <image_a>: what has changed?",
}
ONE_PARTNER, TWO_PARTNERS, THIRTY_PARTNERS = [(1, 2)], [(2, 9), (2, 5)], [(3, b) for b in range(30)]
PAIRS = [*ONE_PARTNER, *THIRTY_PARTNERS[:15], *TWO_PARTNERS, (4, 4), (1, 2), *THIRTY_PARTNERS[15:], (9, 2)]


@cache
def eager_engine() -> Engine:
    """Return an engine whose rows end early and at different steps: on every fifth token of the vocabulary."""
    model = make_engine().model
    return Engine(model, range(0, model.config.vocab_size, 5))


@cache
def prompts() -> dict[str, Prompt]:
    return {name: make_prompt(text) for name, text in PROMPTS.items()}


@cache
def mixed_rows() -> list[Row]:
    rng = np.random.default_rng(7)
    scale = embeddings().astype(np.float32).std()
    images = [Image(index, (scale * rng.standard_normal(embeddings().shape[1:])).astype(np.float16))
              for index in range(30)]
    return [Row(key, images[a], images[b], seed=500 + key) for key, (a, b) in enumerate(PAIRS)]


@cache
def alone(prompt: str, sampling: Sampling) -> list[Generated]:
    """Generate each row by itself from its first token on."""
    return generate(eager_engine(), prompts()[prompt], mixed_rows(), sampling, ALONE)


WAYS = {
    "shared": Limits(rows=64, chunk_tokens=4096, prefix_bytes=2**30),      # all side by side, every prefix kept
    "unshared": Limits(rows=64, chunk_tokens=4096, prefix_bytes=0),
    "slices": Limits(rows=7, chunk_tokens=700, prefix_bytes=1),            # rows join as others leave; one prefix kept
    "pieces": Limits(rows=3, chunk_tokens=100, prefix_bytes=2**30),        # prompts in pieces
}


@pytest.mark.parametrize(("prompt", "way"), [
    *(("images first", way) for way in WAYS), ("text first", "slices"), ("text first", "pieces"), ("B first", "shared"),
    ("B first", "slices"),
])
def test_sampled_rows_have_the_tokens_that_each_has_alone(prompt: str, way: str) -> None:
    rows = generate(eager_engine(), prompts()[prompt], mixed_rows(), SAMPLED, WAYS[way])

    assert rows == alone(prompt, SAMPLED)
    assert len({row.token_ids for row in rows}) > 20
    assert len({len(row.token_ids) for row in rows}) > 4      # so rows leave and join at many steps


@pytest.mark.parametrize("way", WAYS)
def test_greedy_rows_have_the_tokens_that_each_has_alone(way: str) -> None:
    greedy = Sampling(do_sample=False, repetition_penalty=1.2, max_tokens=8)

    rows = generate(eager_engine(), prompts()["images first"], mixed_rows(), greedy, WAYS[way])

    assert rows == alone("images first", greedy)
    assert len({row.token_ids for row in rows}) > 3


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("share", [0, 2**30])
@pytest.mark.parametrize("chunk_tokens", [64, 700])
def test_tokens_equal_those_of_transformers_shared_or_not(case: int, share: int, chunk_tokens: int) -> None:
    limits = Limits(rows=3, chunk_tokens=chunk_tokens, prefix_bytes=share)

    assert generate(make_engine(), reference_prompt(case), make_rows(), GREEDY, limits) == expected_rows(case)


def test_each_first_image_is_computed_once_for_all_its_rows_and_kept_from_call_to_call() -> None:
    engine, prompt = Engine(make_engine().model, []), prompts()["images first"]
    rows = mixed_rows()
    prefix, suffix = prompt.spans[0][1], len(prompt.token_ids) - prompt.spans[0][1]

    generate(engine, prompt, rows[:20], SHORT, LIMITS)
    generate(engine, prompt, rows[20:], SHORT, LIMITS)

    assert engine.counts.prefix_tokens == len({a for a, _ in PAIRS}) * prefix
    assert engine.counts.suffix_tokens == len(rows) * suffix


def test_without_bytes_for_prefixes_every_row_is_computed_whole() -> None:
    engine, prompt = Engine(make_engine().model, []), prompts()["images first"]

    generate(engine, prompt, mixed_rows(), SHORT, replace(LIMITS, prefix_bytes=0))

    assert engine.counts.prefix_tokens == 0
    assert engine.counts.suffix_tokens == len(PAIRS) * len(prompt.token_ids)


def test_a_prefix_holds_the_image_that_the_prompt_shows_first() -> None:
    engine, prompt = Engine(make_engine().model, []), prompts()["B first"]

    generate(engine, prompt, mixed_rows(), SHORT, LIMITS)

    assert engine.counts.prefix_tokens == len({b for _, b in PAIRS}) * prompt.spans[0][1]


def test_over_the_budget_the_prefix_that_was_used_least_recently_goes() -> None:
    engine, prompt = Engine(make_engine().model, []), prompts()["images first"]
    images = [row.image_b for row in mixed_rows() if row.image_a.key == 3][:3]
    config, prefix_tokens = engine.model.config, prompt.spans[0][1]
    one = 2 * config.n_layers * config.n_kv_heads * config.head_dim * 4 * prefix_tokens      # bytes, float32
    limits = Limits(rows=1, chunk_tokens=4096, prefix_bytes=2 * one)

    def computed(first: int) -> int:
        before = engine.counts.prefix_tokens
        row = Row(0, images[first], images[0], seed=1)
        generate(engine, prompt, [row], SHORT, limits)
        return (engine.counts.prefix_tokens - before) // prefix_tokens

    assert [computed(first) for first in (0, 1, 0, 2, 0, 1)] == [1, 1, 0, 1, 0, 1]


def test_a_prefix_of_another_prompt_or_image_is_not_taken() -> None:
    engine, (row, *_) = Engine(make_engine().model, []), mixed_rows()
    other = replace(row, image_a=replace(row.image_a, key="another run's image"))

    for prompt in prompts().values():
        generate(engine, prompt, [row, other], SHORT, LIMITS)

    assert engine.counts.prefix_tokens == sum(2 * p.spans[0][1] for p in prompts().values()) - (
        prompts()["B first"].spans[0][1])      # there the first image is B, the same in both rows


def test_rows_join_while_others_go_on_also_where_a_chunk_has_room_for_more_than_a_slice() -> None:
    prompt, steps = prompts()["images first"], []
    for chunk_tokens in (4096, 64):      # 64 rows, and one
        limits = Limits(4, chunk_tokens, 2**30)
        steps.append(sum(bool(step) for step in eager_engine().generate(prompt, mixed_rows(), SAMPLED, limits)))

    assert steps[0] == steps[1]


def test_rows_are_asked_for_only_when_there_is_a_place_for_them() -> None:
    asked = list[int]()

    def rows() -> Iterator[Row]:
        for row in mixed_rows()[:10]:
            asked.append(row.key)
            yield row

    engine, prompt = Engine(make_engine().model, []), prompts()["images first"]
    steps = engine.generate(prompt, rows(), Sampling(do_sample=False, max_tokens=3), Limits(4, 4096, 2**30))
    counts = [(len(asked), len(step)) for step in steps if step]

    assert counts == [(4, 4)] * 3 + [(8, 4)] * 3 + [(10, 2)] * 3      # 4 places, taken until the third token


def test_when_no_more_rows_come_those_at_hand_are_finished() -> None:
    handed = mixed_rows()[:5]

    generated = generate(eager_engine(), prompts()["images first"], iter(handed), SAMPLED, Limits(3, 700, 2**30))

    assert generated == alone("images first", SAMPLED)[:5]


CHOICES = {"greedy": Sampling(do_sample=False, repetition_penalty=1.2, max_tokens=8), "sampled": SAMPLED}
beside_others = pytest.mark.parametrize(("places", "choice"), [(n, choice) for n in (2, 3, 5) for choice in CHOICES])


def breaking_engine(token_ids: set[int]) -> Engine:
    """Return an eager engine whose rows break in the step that runs one of these tokens."""
    model = load_text_model(open_checkpoint(WEIGHTS))
    weight = np.array(model.embed_tokens.weight)      # [vocab, hidden]
    weight[list(token_ids)] = np.nan
    model.embed_tokens.weight = mx.array(weight)
    return Engine(model, eager_engine().eos_token_ids)


@beside_others
def test_rows_that_break_in_their_prompts_break_alone(places: int, choice: str) -> None:
    broken, nothing = {5, 6, 20}, np.full_like(mixed_rows()[0].image_b.embeddings, np.nan)
    rows = [replace(row, image_b=Image("no numbers", nothing)) if row.key in broken else row for row in mixed_rows()]

    whole = generate(eager_engine(), prompts()["images first"], rows, CHOICES[choice], Limits(places, 700, 2**30))

    assert whole == [row for row in alone("images first", CHOICES[choice]) if row.key not in broken]


@beside_others
def test_rows_that_break_in_decode_break_alone(places: int, choice: str) -> None:
    token_ids = {188, 457}      # that some rows say and others not
    engine, expected = breaking_engine(token_ids), alone("images first", CHOICES[choice])

    whole = generate(engine, prompts()["images first"], mixed_rows(), CHOICES[choice], Limits(places, 700, 2**30))

    assert whole == [row for row in expected if not token_ids & set(row.token_ids[:-1])]
    assert 20 < len(whole) < 30


@beside_others
def test_a_row_that_breaks_in_the_step_behind_its_end_breaks_no_other(places: int, choice: str) -> None:
    prompt, limits = prompts()["images first"], Limits(places, 700, 2**30)
    engine = breaking_engine(set(eager_engine().eos_token_ids) - set(prompt.token_ids))      # run once in vain

    assert generate(engine, prompt, mixed_rows(), CHOICES[choice], limits) == alone("images first", CHOICES[choice])
