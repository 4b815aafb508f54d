"""The device's matrix rate: float32 products with the decoder's own matrices, nothing between them.

It runs in the rounds of the contenders, in a process of its own, with the same library for matrix products.
"""

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
from inputs import read_inputs
from wire import Answer, serve

from store.checkpoint import TextConfig, open_checkpoint

ROWS = (256, 1024, 4096)      # tokens in one product
REPEATS = 4                   # of each; the fastest counts


class Rate:
    """Answers every request with the rate of each product, in FLOP per second."""

    def __init__(self, text: TextConfig) -> None:
        """Draw the matrices, [out, in] as a checkpoint has them."""
        width = text.n_heads * text.head_dim
        shapes = {"gate_up": (2 * text.intermediate_size, text.hidden_size), "q": (width, text.hidden_size),
                  "down": (text.hidden_size, text.intermediate_size)}
        self._matrices = {name: mx.random.normal(shape) for name, shape in shapes.items()}
        mx.eval(self._matrices)

    def __call__(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Measure all products; the best is the device's rate."""
        rates = {f"{name} x {rows}": measure(matrix, rows)
                 for name, matrix in self._matrices.items() for rows in ROWS}
        return {"flops_per_second": max(rates.values()), "products": rates}


def measure(matrix: mx.array, rows: int) -> float:
    """Multiply [rows, in] by a matrix [out, in] transposed; return FLOP per second of the fastest."""
    x = mx.random.normal((rows, matrix.shape[1]))
    mx.eval(x)
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        mx.eval(x @ matrix.T)
        seconds.append(time.perf_counter() - began)
    return float(2 * rows * matrix.size / min(seconds))


def main() -> None:
    """Read the command line and answer the driver."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()

    def load() -> Answer:
        return Rate(open_checkpoint(read_inputs(options.folder).weights).text)

    serve(load, ("mlx",))


if __name__ == "__main__":
    main()
