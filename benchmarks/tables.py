"""Tables in Markdown from the figures that throughput.py has measured. It measures nothing."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from bound import share_computed

Result = Mapping[str, Any]

RIVALS = {"mlx-vlm": ("mlx-vlm-1", "mlx-vlm-8"), "transformers": ("transformers", "transformers-own")}      # the faster


def render(result: Result) -> str:
    """Write all tables of a result, each after what it is about."""
    parts = [describe(result)]
    parts += [throughput_table(result, case) for case in result["cases"].values()]
    if result["prompt_tokens"]:
        parts.append(prompt_tokens_table(result["prompt_tokens"]))
    return "\n\n".join(parts)


def describe(result: Result) -> str:
    """Name the machine, the library of matrix products and the versions."""
    machine = result["machine"]
    all_versions = [{name: machine[name] for name in ("diptych", "mlx")}, *result["versions"].values()]
    packages = {f"{name} {version}" for versions in all_versions for name, version in versions.items()}
    return (f"Machine: {machine['chip']}, {machine['cores']} cores, {machine['os']}; Python {machine['python']}; "
            f"BLAS: {machine['blas']}; {', '.join(sorted(packages))}.")


def throughput_table(result: Result, case: Result) -> str:
    """Write a line for each contender: its rate, beside the rivals' and beside the counted bound."""
    rates = {name: per_minute(case, line) for name, line in case["contenders"].items()}
    rivals = {rival: max((rates[name] for name in names if name in rates), default=None)
              for rival, names in RIVALS.items()}
    bound = bound_per_minute(result, case)
    lines = [[line["title"], f"{rates[name]:.1f}", *(_times(rates[name], rival) for rival in rivals.values()),
              f"{rates[name] / bound:.0%}", f"{line['equal_rows']} of {case['pairs']}"]
             for name, line in case["contenders"].items()]
    lines.append(["counted bound", f"{bound:.1f}", *(_times(bound, rival) for rival in rivals.values()), "100%", ""])
    heads = ["", "comparisons per minute", *(f"times {rival}" for rival in rivals), "of the bound", "equal rows"]
    return f"{_about(result, case)}\n\n{markdown(heads, lines)}"


def per_minute(case: Result, line: Result) -> float:
    """Return the median rate of a contender, in pairs per minute."""
    return float(60 * case["pairs"] / median(line["seconds"]))


def bound_per_minute(result: Result, case: Result) -> float:
    """Return the rate in pairs per minute of a device that does nothing but the counted work."""
    return float(60 * case["pairs"] * matrix_rate(result) / case["flops"])


def matrix_rate(result: Result) -> float:
    """Return the best rate of matrix products that was seen during the run, in FLOP per second."""
    return float(max(rate for case in result["cases"].values() for rate in case["matrix_rates"]))


def prompt_tokens_table(counts: Sequence[Result]) -> str:
    """Write how many prompt tokens were computed for a pair, counted by the engine, and the formula beside them."""
    prefix, suffix = counts[0]["prefix"], counts[0]["suffix"]
    about = (f"Prompt tokens computed for a pair, of {prefix + suffix}: {prefix} up to and including the first image, "
             f"{suffix} behind it. Formula: (prefix + k suffix) / (k (prefix + suffix)) for k partners.")
    lines = [[str(count["partners"]), f"{count['computed'] / count['pairs']:.1f}",
              f"{count['computed'] / count['pairs'] / (prefix + suffix):.3f}",
              f"{share_computed(prefix, suffix, count['partners']):.3f}"] for count in counts]
    heads = ["partners of each first image", "counted for a pair", "of the unshared", "formula"]
    return f"{about}\n\n{markdown(heads, lines)}"


def markdown(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Write a table; all columns but the first are numbers."""
    rule = ["---", *["---:"] * (len(heads) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, rule, *lines))


def _about(result: Result, case: Result) -> str:
    model = result["model"]
    return (f"{case['pairs']} pairs over {case['images']} images, {case['first_images']} of them first; "
            f"{model['prompt_tokens']} prompt tokens and {model['new_tokens']} new ones a pair, greedy, float32, "
            f"medians of {model['rounds']}. The bound: {case['flops'] / 1e9:,.0f} GFLOP at "
            f"{matrix_rate(result) / 1e9:,.0f} GFLOP/s.")


def _times(rate: float, rival: float | None) -> str:
    return "" if rival is None else f"{rate / rival:.2f}"
