"""What a benchmark found, in words: a line of a table, a sentence that recommends, a document for programs."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from jobs.sizes import format_size
from workers.bench import Record, Workload, fastest, recommend, speed_up

HEAD = "batch   rows  pairs  seconds     tok/s  speed-up  pairs/min      peak   planned"
REPEATED = "*"      # behind the batch size
FOOTNOTE = f"{REPEATED} one was slower than the size before: both were measured again, and the medians of {{}} count"


def table_line(records: Sequence[Record], record: Record) -> str:
    """Write one of the records as a line under HEAD; the speed-up is against batch size 1."""
    times, mark = speed_up(records, record), REPEATED if record.repeats else " "
    speed = "-" if times is None else f"{times:.1f}x"
    peak, planned = format_size(record.peak_bytes), format_size(record.planned_bytes)
    return (f"{record.batch_size:>5}{mark}  {record.rows:>4}  {record.pairs:>5}  {record.seconds:>7,.1f}  "
            f"{record.tokens_per_second:>8,.1f}  {speed:>8}  {record.comparisons_per_minute:>9,.1f}  "
            f"{peak:>8}  {planned:>8}")


def recommendation(records: Sequence[Record], limit: int) -> str:
    """Say in a sentence which batch size to take, and what the fastest one would gain."""
    chosen, best = recommend(records, limit), fastest(records, limit)
    if chosen is None or best is None:
        least = min(record.peak_bytes for record in records)
        return (f"no --batch-size to recommend: every peak, from {format_size(least)} on, is over the limit of "
                f"{format_size(limit)}; give a smaller --memory-limit, so that less is planned")
    times, rate = speed_up(records, chosen), chosen.comparisons_per_minute
    over_one = "" if times is None else f", {times:.1f} times batch size 1"
    gain = best.comparisons_per_minute / rate - 1
    others = "none is faster" if best is chosen else f"the fastest, {best.batch_size:,}, gains {100 * gain:.1f} %"
    return (f"--batch-size {chosen.batch_size}: {rate:,.1f} comparisons/min{over_one}, "
            f"peak {format_size(chosen.peak_bytes)} of {format_size(limit)}; {others}")


def document(
    records: Sequence[Record], work: Workload, machine: Mapping[str, Any], checkpoint: Mapping[str, Any],
    embeddings: str, *, complete: bool,
) -> dict[str, Any]:
    """Collect all that was found, and what it was found with, as values that JSON has; sizes are in bytes."""
    prompt, chosen = work.prompt, recommend(records, work.limit)
    return {
        "complete": complete,
        "recommended_batch_size": chosen.batch_size if chosen else None,
        "recommendation": recommendation(records, work.limit) if records else None,
        "machine": {**machine, "memory_limit": work.limit},
        "checkpoint": dict(checkpoint),
        "workload": {
            "prompt": prompt.text, "thinking": prompt.thinking, "prompt_tokens": len(prompt.token_ids),
            "prefix_tokens": prompt.spans[0][1], "image_tokens": prompt.grid[0] * prompt.grid[1],
            "partners": work.partners, "embeddings": embeddings, **asdict(work.sampling),
        },
        "sizes": [_entry(records, record) for record in records],
    }


def _entry(records: Sequence[Record], record: Record) -> dict[str, Any]:
    measured = {"seconds": record.seconds, "tokens_per_second": record.tokens_per_second,
                "speed_up": speed_up(records, record), "comparisons_per_minute": record.comparisons_per_minute}
    return asdict(record) | {name: value and round(value, 4) for name, value in measured.items()}
