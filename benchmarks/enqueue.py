"""Time and peak memory of `diptych enqueue` for 100,000 pairs, the embedded server's start included.

    .venv/bin/python benchmarks/enqueue.py [--pairs 100000] [--images 2000] [--batch-size 64]

Embeddings are small random ones: reading real ones once to see that they are finite is the disk's time, not ours.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
TOKENS, GRID = 16, (4, 4)
SERVER_SECONDS = 30      # a server is gone within 10 of its last client
TARGET_SECONDS, TARGET_MB = 15, 300      # for 100,000 pairs on a machine with two cores


def prepare(folder: Path, images: int, pairs: int) -> None:
    """Make a tiny checkpoint, random embeddings and a pairs file."""
    make = [sys.executable, str(HERE / "make_checkpoint.py"), str(folder / "weights"), "--preset", "tiny"]
    subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
    from store.checkpoint import open_checkpoint
    from store.embeddings import EmbeddingsWriter

    hidden = open_checkpoint(folder / "weights").text.hidden_size
    draw = np.random.default_rng(0)
    with EmbeddingsWriter(folder / "embeddings", tokens=TOKENS, hidden=hidden, grid=GRID) as writer:
        names = [f"{index:06d}.jpg" for index in range(images)]
        writer.append(names, draw.standard_normal((images, TOKENS, hidden), dtype=np.float32))
    indices = draw.integers(0, images, (pairs, 2))
    (folder / "pairs.txt").write_text("".join(f"{a},{b}\n" for a, b in indices))


def measure(folder: Path, batch_size: int) -> tuple[float, float]:
    """Enqueue in a process of its own; return wall seconds and its peak memory in MB."""
    command = [str(Path(sys.executable).with_name("diptych")), "enqueue", "pairs.txt", "--embeds", "embeddings",
               "--weights", "weights", "--batch-size", str(batch_size)]
    began = time.monotonic()
    process = subprocess.Popen(command, cwd=folder, env=os.environ | {"HOME": str(folder)}, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"enqueue failed with status {os.waitstatus_to_exitcode(status)}")
    return time.monotonic() - began, usage.ru_maxrss / (1e6 if platform.system() == "Darwin" else 1e3)


def wait_for_server(home: Path) -> None:
    """Wait until the embedded server, which ends soon after its last client, and its watcher leave their folder."""
    from jobs import watcher

    deadline = time.monotonic() + SERVER_SECONDS
    for folder in (home / ".diptych").iterdir():
        while any(watcher.is_locked(folder / lock) for lock in (watcher.SERVER_LOCK, watcher.WATCHER_LOCK)):
            if time.monotonic() > deadline:
                sys.exit(f"{folder}: the server still runs {SERVER_SECONDS} s after its last client")
            time.sleep(0.1)


def main() -> None:
    """Print the figures, and end with status 1 where 100,000 pairs miss the target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--images", type=int, default=2_000)
    parser.add_argument("--batch-size", type=int, default=64)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dt-", dir="/tmp") as name:
        prepare(Path(name), options.images, options.pairs)
        seconds, megabytes = measure(Path(name), options.batch_size)
        wait_for_server(Path(name))
    print(f"{options.pairs:,} pairs, batch size {options.batch_size}: {seconds:.1f} s, peak {megabytes:.0f} MB "
          f"({os.cpu_count()} cores, Python {platform.python_version()})")
    if options.pairs == 100_000 and (seconds > TARGET_SECONDS or megabytes > TARGET_MB):
        sys.exit(f"target: at most {TARGET_SECONDS} s and {TARGET_MB} MB")


if __name__ == "__main__":
    main()
