"""`diptych bench` on a random checkpoint of a middle size: batch sizes from 1 to 512, their rates and peak memory.

    .venv/bin/python benchmarks/sizes.py --json sizes.json

Eight pairs to a first image, 16 new tokens, greedy, float32. On Linux OpenBLAS is loaded first, as in throughput.py.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from blas import BlasError, describe_blas, find_blas, with_blas
from workload import make_weights

DIPTYCH = Path(sys.executable).with_name("diptych")


def main() -> None:
    """Measure, with diptych's own table on stderr."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="write the figures here")
    parser.add_argument("--blas", default="auto", help="auto, none, or the library to load first")
    given = parser.parse_args()
    try:
        blas = find_blas(given.blas)
    except BlasError as error:
        sys.exit(f"Error: {error}")
    with tempfile.TemporaryDirectory(prefix="dt-") as name:
        weights = make_weights(Path(name) / "middle", "middle")
        command = [DIPTYCH, "bench", "--weights", weights, "--max-tokens", "16", "--greedy", "--json"]
        done = subprocess.run(command, env=with_blas(blas), stdout=subprocess.PIPE, check=True)
    result = json.loads(done.stdout)
    result["checkpoint"]["folder"] = "benchmarks/make_checkpoint.py --preset middle"
    result["machine"] |= {"blas": describe_blas(blas), "cores": os.cpu_count()}
    given.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
