"""What every contender is given: a checkpoint, a prompt as token ids and positions, embeddings of images. No model."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Inputs:
    """One prompt for all pairs, and the images that fill its two places."""

    weights: Path
    text: str                            # of the prompt, for who renders it
    token_ids: list[int]
    spans: list[list[int]]               # [start, end) of the two image blocks
    grid: tuple[int, int]                # rows and columns of an image's embeddings
    positions: NDArray[np.int64]         # [3, tokens]: t, h, w
    embeddings: NDArray[np.float16]      # [images, tokens, hidden]

    @property
    def rope_delta(self) -> int:
        """Return what a decode step's position is more than the number of tokens before it: below 0 for images."""
        return int(self.positions.max()) + 1 - len(self.token_ids)


def read_inputs(folder: Path) -> Inputs:
    """Read the folder that the driver has made; the embeddings come into memory."""
    info: dict[str, Any] = json.loads((folder / "inputs.json").read_text(encoding="utf-8"))
    positions = np.array(info["positions"], np.int64)
    embeddings = np.fromfile(folder / "embeddings" / "embeddings.bin", np.dtype("<f2"))
    rows, cols = info["grid"]
    return Inputs(
        weights=Path(info["weights"]), text=info["text"], token_ids=info["token_ids"], spans=info["spans"],
        grid=(rows, cols), positions=positions, embeddings=embeddings.reshape(-1, rows * cols, info["hidden"]),
    )
