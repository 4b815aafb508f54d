"""Comparisons per minute beside mlx-vlm and transformers, and the prompt tokens that shared prefixes save.

    python -m venv rivals
    rivals/bin/pip install -r benchmarks/requirements.txt
    .venv/bin/python benchmarks/throughput.py --python rivals/bin/python --output throughput.json
    .venv/bin/python benchmarks/throughput.py --show throughput.json

All compute the same: a random checkpoint of a middle size in float32 (make_checkpoint.py), random embeddings of 256
tokens an image, the default prompt, greedy, exactly so many new tokens. Each contender is a process that loads once and
then answers a request a round: round 1 of all, round 2 of all, each round beginning with another one; the median
counts. The clock runs from the first embedding to the last token; loading and tokenizing are outside.

On Linux OpenBLAS is loaded before all other libraries, in all processes alike: MLX's wheel has the slow reference BLAS.
It takes the place of the MKL inside torch as well, which suits torch's fused attention badly. So transformers runs
twice: with OpenBLAS and attention written out, and once more as it is installed; the faster one counts.

The counted bound is what the device could do if it did nothing but the matrix products that the pairs need with all
sharing (bound.py says what is counted), at the rate that it reaches in the best float32 product with the model's own
matrices, measured by MLX in each round. "Equal rows" are those with the same tokens as the first contender in every
round: in float32 two logits can be so near that the order of a sum decides.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from blas import BlasError, check_loaded, describe_blas, find_blas, with_blas
from bound import count_flops
from contender import Contender, ContenderError, Kind
from tables import render
from workload import Pairs, Workload, distinct_pairs, image_count, make_weights, make_workload, shared_pairs

from jobs.environment import environment
from store.errors import DiptychError

KINDS = (
    Kind("ours", "diptych", "ours.py", own=True),
    Kind("unshared", "diptych, sharing off", "ours.py", ("--no-sharing",), own=True),
    Kind("mlx-vlm-1", "mlx-vlm, prefill batch 1", "vlm_batch.py", ("--prefill", "1")),
    Kind("mlx-vlm-8", "mlx-vlm, prefill batch 8", "vlm_batch.py", ("--prefill", "8")),
    Kind("transformers", "transformers, batch 8", "hf_generate.py", ("--batch", "8", "--attention", "eager")),
    Kind("transformers-own", "transformers, batch 8, its own BLAS", "hf_generate.py", ("--batch", "8"), blas=False),
)
RATE = Kind("rate", "the matrix rate", "rate.py", own=True)
CASES = {"shared": shared_pairs, "distinct": distinct_pairs}
PARTNERS = (1, 2, 4, 8, 16)      # for which prompt tokens are counted
WARM_UP = 2                      # pairs, and new tokens, before the first round

Result = dict[str, Any]


class Arena:
    """The contenders on one workload, all running."""

    def __init__(self, stack: ExitStack, kinds: Sequence[Kind], work: Workload, python: str, blas: Path | None) -> None:
        """Start them all and wait until they have loaded; `stack` ends them."""
        self.work, self.versions = work, dict[str, dict[str, str]]()
        self.contenders = [stack.enter_context(start(kind, work.folder, python, blas)) for kind in kinds]
        for contender in self.contenders:
            ready, kind = contender.ready(), contender.kind
            if kind.blas:
                check_loaded(kind.title, blas, ready["blas"])
            self.versions[kind.name] = ready["versions"]


def start(kind: Kind, folder: Path, python: str, blas: Path | None) -> Contender:
    """Start a contender in its interpreter and with its library of matrix products."""
    return Contender(kind, sys.executable if kind.own else python, folder, with_blas(blas if kind.blas else None))


def measure(arena: Arena, rate: Contender, case: str, pairs: Pairs, new_tokens: int, rounds: int) -> Result:
    """Let all generate in rounds; return a case of the result."""
    answers: dict[str, list[Result]] = {contender.kind.name: [] for contender in arena.contenders}
    rates = []
    for number, contenders in enumerate(rotations(arena.contenders, rounds), start=1):
        rates.append(rate.ask()["flops_per_second"])
        say(f"{case}, round {number}: the matrix rate is {rates[-1] / 1e9:.0f} GFLOP/s")
        for contender in contenders:
            answer = contender.generate(pairs, new_tokens)
            answers[contender.kind.name].append(answer)
            say(f"{case}, round {number}: {contender.kind.title}: {answer['seconds']:.1f} s")
    return summarize(arena, answers, pairs, new_tokens) | {"matrix_rates": rates}


def rotations(contenders: Sequence[Contender], rounds: int) -> Iterator[list[Contender]]:
    """Yield the order of each round; none is always first or always after the same one's heat."""
    for number in range(rounds):
        first = number % len(contenders)
        yield [*contenders[first:], *contenders[:first]]


def summarize(arena: Arena, answers: Mapping[str, Sequence[Result]], pairs: Pairs, new_tokens: int) -> Result:
    """Gather times, counts and equal rows of all contenders; the first one's tokens are what others are held to."""
    work, firsts = arena.work, {first for first, _ in pairs}
    expected = next(iter(answers.values()))[0]["tokens"]
    flops = count_flops(work.text, len(firsts), len(pairs), work.prefix_tokens, work.suffix_tokens, new_tokens)
    contenders: Result = {}
    for contender in arena.contenders:
        own = answers[contender.kind.name]
        contenders[contender.kind.name] = {
            "title": contender.kind.title, "seconds": [answer["seconds"] for answer in own],
            "equal_rows": equal_rows(expected, [answer["tokens"] for answer in own]),
        } | {name: own[0][name] for name in ("counts", "limits") if name in own[0]}
    return {"pairs": len(pairs), "images": len({index for pair in pairs for index in pair}),
            "first_images": len(firsts), "flops": flops, "contenders": contenders}


def equal_rows(expected: Sequence[Sequence[int]], rounds: Sequence[Sequence[Sequence[int]]]) -> int:
    """Count the rows that have the expected tokens in every round."""
    return sum(all(tokens[row] == wanted for tokens in rounds) for row, wanted in enumerate(expected))


def count_prompt_tokens(folder: Path, blas: Path | None) -> list[Result]:
    """Let the engine count prompt tokens with k partners for each of two first images, on a tiny checkpoint."""
    weights = make_weights(folder / "weights", "tiny")
    lists = {partners: shared_pairs(2 * partners, partners) for partners in PARTNERS}
    work = make_workload(folder, weights, image_count(*lists.values()))
    results = []
    with ExitStack() as stack:
        (ours,) = Arena(stack, KINDS[:1], work, sys.executable, blas).contenders
        for partners, pairs in lists.items():
            counts = ours.generate(pairs, 1)["counts"]
            computed = counts["prefix_tokens"] + counts["suffix_tokens"]
            results.append({"partners": partners, "pairs": len(pairs), "prefix": work.prefix_tokens,
                            "suffix": work.suffix_tokens, "computed": computed})
    return results


def compete(folder: Path, options: argparse.Namespace, blas: Path | None, result: Result) -> None:
    """Run the cases and add them to the result, which is written after each."""
    lists = {case: make(options.pairs) for case, make in CASES.items() if case in options.case}
    work = make_workload(folder, options.weights or make_weights(folder / "weights", "middle"),
                         image_count(*lists.values()))
    kinds = [kind for kind in KINDS if kind.name not in options.without]
    with ExitStack() as stack:
        (rate,) = Arena(stack, [RATE], work, options.python, blas).contenders
        arena = Arena(stack, kinds, work, options.python, blas)
        result["versions"] = arena.versions
        result["model"] = {"prompt_tokens": work.prefix_tokens + work.suffix_tokens, "rounds": options.rounds,
                           "prefix_tokens": work.prefix_tokens, "new_tokens": options.new_tokens}
        for contender in arena.contenders:
            contender.generate(distinct_pairs(WARM_UP), WARM_UP)
        for case, pairs in lists.items():
            result["cases"][case] = measure(arena, rate, case, pairs, options.new_tokens, options.rounds)
            write(options.output, result)


def run(options: argparse.Namespace) -> Result:
    """Measure all that was asked for; return the result as it is written."""
    blas = find_blas(options.blas)
    result: Result = {"machine": environment() | {"cores": os.cpu_count(), "blas": describe_blas(blas)},
                      "versions": {}, "model": {}, "cases": {}, "prompt_tokens": []}
    with tempfile.TemporaryDirectory(prefix="dt-") as name:
        for part in options.case:
            (Path(name) / part).mkdir()
        if "tokens" in options.case:
            result["prompt_tokens"] = count_prompt_tokens(Path(name) / "tokens", blas)
            write(options.output, result)
        if set(options.case) & set(CASES):
            compete(Path(name), options, blas, result)
    return result


def write(file: Path | None, result: Result) -> None:
    """Write a result as JSON, where a file was named."""
    if file is not None:
        file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def say(text: str) -> None:
    """Tell who waits."""
    print(text, file=sys.stderr, flush=True)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="the interpreter that has mlx-vlm and transformers")
    parser.add_argument("--output", type=Path, help="write all figures there, as JSON")
    parser.add_argument("--show", type=Path, help="measure nothing; print the tables of such a file")
    parser.add_argument("--case", action="append", choices=[*CASES, "tokens"], help="only this; may be repeated")
    parser.add_argument("--without", action="append", default=[], choices=[kind.name for kind in KINDS],
                        help="leave a contender out; may be repeated")
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--blas", default="auto", help="auto, none, or the library to load first")
    parser.add_argument("--weights", type=Path, help="a checkpoint to take in place of a new one")
    options = parser.parse_args(argv)
    options.case = options.case or [*CASES, "tokens"]
    return options


def main() -> None:
    """Measure, or read what was measured, and print the tables."""
    options = parse()
    try:
        result = json.loads(options.show.read_text(encoding="utf-8")) if options.show else run(options)
    except (BlasError, ContenderError, DiptychError) as error:
        sys.exit(f"Error: {error}")
    print(render(result))


if __name__ == "__main__":
    main()
