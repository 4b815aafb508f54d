"""What a plan will cost: counted, and by the formula."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jobs.enqueue import Request, plan_run
from jobs.estimate import Estimate, count_prefixes, estimate
from jobs.inputs import Settings
from store.records import PairOrder, Sampling

COST = Estimate(pairs=64, jobs=1, images=24, first_images=8, prefixes=8, prefix_tokens=262, prompt_tokens=540,
                max_tokens=16, rate_run=None, comparisons_per_minute=None)


def test_a_prefix_counts_once_in_each_job_that_needs_it() -> None:
    assert count_prefixes([0, 0, 1, 1, 1, 2], np.array([7, 7, 7, 9, 7, 9])) == 4


@pytest.mark.parametrize("partners", [1, 2, 8, 64])
def test_the_share_of_computed_tokens_is_that_of_the_formula(partners: int) -> None:
    cost = replace(COST, first_images=64 // partners, prefixes=64 // partners)

    assert cost.pairs_a_first_image == partners
    assert cost.computed_share == pytest.approx((262 / partners + 278) / 540)


def test_a_plan_that_shares_nothing_computes_everything() -> None:
    assert replace(COST, first_images=64, prefixes=64).computed_share == 1


@pytest.mark.parametrize(("order", "prompt", "prefixes"), [
    ("grouped", "Compare these two images.", 4), ("file", "Compare these two images.", 6),
    ("grouped", "Compare <image_b> with <image_a>.", 4),
])
def test_the_estimate_counts_what_the_plan_shares(
    workspace: Path, order: PairOrder, prompt: str, prefixes: int
) -> None:
    settings = Settings(workspace / "embeddings_512", workspace / "vision_weights", prompt, False, Sampling())
    plan = plan_run(Request(settings, workspace / "pairs.txt", None, 5, 3, None, (), order))
    tokens, image = plan.inputs.prompt.token_ids, plan.inputs.checkpoint.image_token_id

    cost = estimate(plan, str(workspace / "results.db"))

    assert (cost.pairs, cost.jobs, cost.images, cost.first_images, cost.prefixes) == (8, 3, 4, 4, prefixes)
    assert tokens[: cost.prefix_tokens].count(image) == 256      # of one image
    assert tokens[cost.prefix_tokens - 1] == image               # which ends the prefix
    assert cost.prompt_tokens == len(tokens)
