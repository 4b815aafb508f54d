"""The memory plan: its arithmetic against GLM-4.6V-Flash and real checkpoints, and what it promises."""

import math
from dataclasses import replace
from functools import cache
from pathlib import Path

import mlx.core as mx
import pytest
from conftest import WEIGHTS
from mlx.utils import tree_flatten
from reference import GREEDY, copy_checkpoint, make_engine, make_rows, read_weights, reference_prompt

from jobs.limits import Limits
from jobs.memory import (
    KEPT,
    LEAST_CHUNK,
    Decoder,
    MemoryPlan,
    Needs,
    describe_plan,
    most_chunk_tokens,
    plan_memory,
    read_decoder,
    share_out,
)
from store import demo
from store.checkpoint import Checkpoint, Tensor, open_checkpoint
from store.errors import SettingsError
from store.records import Sampling
from store.weights import text_tensors, vision_tensors
from workers.doctor import FLASH, FLASH_DEMAND
from workers.engine import Engine
from workers.model.load import load_text_model

GB = 10**9
ROOT = Path(__file__).parent.parent


@cache
def flash(dtype: str = "BF16") -> Checkpoint:
    """GLM-4.6V-Flash as its files' headers would tell of it."""
    small = open_checkpoint(WEIGHTS)
    shapes = text_tensors(FLASH) | vision_tensors(small.vision)
    tensors = {name: Tensor(Path("model.safetensors"), dtype, shape) for name, shape in shapes.items()}
    return replace(small, text=FLASH, tensors=tensors)


@cache
def flash_decoder() -> Decoder:
    return read_decoder(flash())


def needs(**changes: object) -> Needs:
    """What GLM-4.6V-Flash asks for the default prompt."""
    return Needs(flash_decoder(), replace(FLASH_DEMAND, **changes))      # type: ignore[arg-type]


def plan(limit: int, **changes: object) -> MemoryPlan:
    return share_out(needs(**changes), limit)


def loaded_bytes(checkpoint: Checkpoint) -> int:
    return sum(array.nbytes for _, array in tree_flatten(load_text_model(checkpoint).parameters()))


def test_flash_has_its_weights_and_its_bytes_a_token() -> None:
    decoder = read_decoder(flash())

    assert decoder.item == 2
    assert decoder.weights == pytest.approx(2 * 9.40 * GB, rel=1e-3)      # without the vision tower
    assert decoder.kv_token == 40_960
    assert needs().prefix == 261 * 40_960
    assert needs().kv_row == 645 * 40_960
    assert read_decoder(flash("F32")).kv_token == 81_920


@pytest.mark.parametrize("folder", [WEIGHTS, demo.WEIGHTS], ids=["small", "demo"])
def test_the_planned_weights_are_the_bytes_that_loading_takes(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)

    assert read_decoder(checkpoint).weights == loaded_bytes(checkpoint)


def test_weights_of_two_types_are_planned_in_the_one_that_they_are_loaded_in(tmp_path: Path) -> None:
    mixed = {name: array.astype(mx.bfloat16) if array.ndim > 1 else array for name, array in read_weights().items()}
    checkpoint = open_checkpoint(copy_checkpoint(tmp_path / "mixed", weights=mixed))

    assert read_decoder(checkpoint).item == 2
    assert read_decoder(checkpoint).weights == loaded_bytes(checkpoint)


def test_packed_weights_are_planned_as_they_are(tmp_path: Path) -> None:
    packed = {}
    for name, array in read_weights().items():
        if name.startswith("model.visual.") or array.ndim < 2:
            packed[name] = array.astype(mx.float16)
        else:
            layer = name.removesuffix(".weight")
            packed[name], packed[f"{layer}.scales"], packed[f"{layer}.biases"] = mx.quantize(
                array.astype(mx.float16), group_size=32, bits=4)
    folder = copy_checkpoint(tmp_path / "packed", weights=packed,
                             edit=lambda config: config.update(quantization={"group_size": 32, "bits": 4}))

    decoder = read_decoder(open_checkpoint(folder))

    assert decoder.item == 2
    assert decoder.weights == loaded_bytes(open_checkpoint(folder))


def test_a_tied_head_that_is_stored_is_not_planned(tmp_path: Path) -> None:
    folder = copy_checkpoint(tmp_path / "tied", edit=lambda config: config.update(tie_word_embeddings=True)
                             or config["text_config"].update(tie_word_embeddings=True))
    checkpoint = open_checkpoint(folder)

    assert read_decoder(checkpoint).weights == loaded_bytes(checkpoint)
    assert read_decoder(checkpoint).weights < read_decoder(open_checkpoint(WEIGHTS)).weights


def test_the_parts_of_a_plan_fill_its_limit_and_do_not_pass_it() -> None:
    for limit in range(20 * GB, 40 * GB, GB // 7):
        made = plan(limit)

        free = limit - limit // KEPT - made.peak(made.rows) - made.moved

        assert 0 <= free < 2 * made.row
        assert made.total <= limit


def test_a_larger_limit_gives_no_fewer_rows() -> None:
    rows = [plan(limit).rows for limit in range(needs().least_limit, 60 * GB, GB // 20)]

    assert rows == sorted(rows)
    assert rows[0] == 1
    assert rows[-1] > 1000


def test_a_job_of_512_pairs_runs_in_slices_that_fit() -> None:
    small, large = plan(24 * GB, batch_size=512), plan(80 * GB, batch_size=512)

    assert 64 <= small.rows < 512
    assert small.limits == Limits(small.rows, small.chunk_tokens, small.prefix_cache)
    assert f"a job of 512 pairs runs in slices of {small.rows}" in "\n".join(describe_plan(small))
    assert large.rows == 512
    assert large.fitting > 512
    assert f"a whole job side by side; {large.fitting:,} would fit" in "\n".join(describe_plan(large))


def test_the_smallest_limit_has_one_row_one_prefix_and_the_shortest_chunk() -> None:
    least = plan(needs().least_limit)

    assert (least.rows, least.prefixes, least.chunk_tokens) == (1, 1, LEAST_CHUNK)
    with pytest.raises(SettingsError):
        plan(needs().least_limit - 2)      # it is rounded up


def refusal(needs: Needs, limit: int) -> str:
    with pytest.raises(SettingsError) as raised:
        share_out(needs, limit)
    return str(raised.value)


def test_what_does_not_fit_is_refused_with_the_numbers_and_the_way_out() -> None:
    least = math.ceil(needs().least_limit / 1e8) / 10

    message = refusal(needs(), 16 * GB)

    assert f"expected a limit of at least {least:.1f} GB for one pair (18.8 GB of it for the weights)" in message
    assert "found 16.0 GB; take weights of fewer bits, or give a larger --memory-limit" in message


def test_answers_too_long_for_the_memory_are_to_be_shortened() -> None:
    quantized = Decoder(FLASH, weights=5 * GB, item=2)

    message = refusal(Needs(quantized, replace(FLASH_DEMAND, sampling=Sampling(max_tokens=120_000))), 8 * GB)

    assert "found 8.0 GB; ask for fewer --max-tokens" in message


def test_prefixes_get_a_modest_share_and_no_more_than_there_are_images() -> None:
    many, few = plan(40 * GB), plan(40 * GB, images=5)

    assert many.prefix < many.prefix_cache < (40 * GB - many.weights) // 8
    assert few.prefix_cache == 5 * few.prefix
    assert few.prefixes == 5
    assert few.rows > many.rows


def test_a_chunk_is_what_a_slow_mac_computes_in_5_seconds() -> None:
    tokens = most_chunk_tokens(FLASH)
    weights = 9.40 * GB - 2 * 151_552 * 4096      # embedding and head take no part in prefill

    assert 2 * weights * tokens == pytest.approx(5 * 2e12, rel=1e-2)
    assert plan(24 * GB).chunk_tokens == tokens
    assert most_chunk_tokens(open_checkpoint(WEIGHTS).text) == 640


def test_a_chunk_is_shorter_where_memory_is_short_and_no_longer_than_a_job() -> None:
    assert LEAST_CHUNK < plan(needs().least_limit + GB // 2).chunk_tokens < most_chunk_tokens(FLASH)
    assert plan(24 * GB, batch_size=1).chunk_tokens == 545


def test_more_work_a_token_takes_more_a_row() -> None:
    rows = [needs(sampling=sampling).row for sampling in (
        Sampling(do_sample=False), Sampling(), Sampling(repetition_penalty=1.1), Sampling(top_k=0),
        Sampling(top_k=0, repetition_penalty=1.1),
    )]

    assert rows == sorted(set(rows))
    assert needs(sampling=Sampling(top_k=0, top_p=1)).row == needs(sampling=Sampling()).row      # neither filters
    assert needs(sampling=Sampling(max_tokens=200)).row - needs().row >= 100 * 40_960


def test_a_plan_is_written_in_aligned_lines() -> None:
    lines = describe_plan(plan(24 * GB, batch_size=512))

    assert [line.split("  ")[0] for line in lines] == [
        "weights", "prefix cache", "prefill chunk", "rows", "reserve", "in all"]
    assert len({line.index("B  ") for line in lines}) == 1
    assert lines[0].split() == ["weights", "18.8", "GB", "the", "text", "decoder"]
    assert lines[-1].endswith("of a limit of 24.0 GB")


@pytest.mark.parametrize("rows", [1, 4, 16])
@pytest.mark.parametrize("chosen", [GREEDY, Sampling(max_tokens=8, top_k=0, repetition_penalty=1.1)])
def test_what_the_engine_takes_is_within_the_plan(rows: int, chosen: Sampling) -> None:
    prompt, checkpoint = reference_prompt(0), open_checkpoint(WEIGHTS)
    pairs = [(row % 4, row * 3 % 4) for row in range(16)]
    planned = plan_memory(checkpoint, prompt, chosen, GB, batch_size=rows, images=4)
    weights, eos_token_ids = make_engine().model, make_engine().eos_token_ids
    engine, before = Engine(weights, eos_token_ids), mx.get_active_memory()
    mx.reset_peak_memory()

    for _ in engine.generate(prompt, make_rows(pairs), chosen, planned.limits):
        pass

    assert planned.rows == rows
    assert mx.get_peak_memory() - before <= planned.peak(rows) - planned.weights


def test_the_documentation_shows_the_plan_that_is_made() -> None:
    page = (ROOT / "docs" / "memory.md").read_text()

    made = plan(24 * GB, batch_size=512, images=1000)

    assert "\n".join(["```", *describe_plan(made), "```"]) in page


@pytest.mark.parametrize("prefix_tokens", [25, 40, 261])
@pytest.mark.parametrize("limit", [64e9, 96e9, 512e9])
def test_prefixes_take_no_more_buffers_than_metal_gives_a_process(prefix_tokens: int, limit: float) -> None:
    made = plan(int(limit), prefix_tokens=prefix_tokens, images=1_000_000)

    assert made.prefixes * 2 * FLASH.n_layers < 499_000 / 1.9      # the rest is the model's and the step's
