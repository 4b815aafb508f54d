"""What crosses the boundaries between rooms: runs, pairs and results as frozen records. They know no tables."""

from dataclasses import dataclass, field
from typing import Literal

from store.errors import SettingsError

Status = Literal["pending", "done", "failed"]
State = Literal["queued", "running", "done", "cancelled"]
FinishReason = Literal["stop", "length"]
PairOrder = Literal["grouped", "file"]      # in which the pairs of a run are divided into jobs

SEED_LIMIT = 2**53      # seeds are below it: exact in JSON, JavaScript and pandas


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen. Order: repetition penalty, temperature, top-k, then top-p over the survivors."""

    do_sample: bool = True
    temperature: float = 0.8
    top_k: int = 50              # 0 is off
    top_p: float = 0.6           # 1 is off
    repetition_penalty: float = 1.0
    max_tokens: int = 100

    def __post_init__(self) -> None:
        """Raise SettingsError for a value out of its range."""
        temperature = 1e-6 <= self.temperature <= 1e6 or (not self.do_sample and 0 <= self.temperature <= 1e6)
        checks = (
            (temperature, "temperature", "a number from 1e-06 to 1e+06 (--greedy is without sampling)"),
            (0 <= self.top_k < 2**31, "top_k", "0 (off) or more, below 2^31"),
            (0 < self.top_p <= 1, "top_p", "more than 0 and at most 1 (off)"),
            (1e-6 <= self.repetition_penalty <= 1e6, "repetition_penalty", "a number from 1e-06 to 1e+06; 1.0 is none"),
            (1 <= self.max_tokens < 2**31, "max_tokens", "1 or more, below 2^31"),
        )
        for holds, name, expected in checks:
            if not holds:
                raise SettingsError(f"{name}: expected {expected}, found {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Pair:
    """Two images in order, A then B, at their place in the pairs file."""

    position: int      # 0-based line of the pairs file; tells apart a pair that stands twice
    idx_a: int         # 0-based into filenames.txt
    idx_b: int
    seed: int          # of this row; derived from the run's seed and the position
    job: int           # the job that computes it, for ever


@dataclass(frozen=True, slots=True)
class NewRun:
    """One request, as `enqueue` knows it before the database has it."""

    name: str | None
    prompt: str
    thinking: bool
    sampling: Sampling
    seed: int
    batch_size: int
    pairs_file: str | None           # absolute; None when pairs were drawn
    pairs_sha256: str | None
    embeddings_dir: str              # absolute
    embeddings_fingerprint: str
    weights_dir: str                 # absolute
    model_fingerprint: str
    version: str                     # of diptych
    environment: dict[str, str]      # mlx, Python, OS, chip, and its files: sizes and digests
    argv: tuple[str, ...]            # passwords masked
    pair_order: PairOrder = field(default="grouped", kw_only=True)


@dataclass(frozen=True, slots=True)
class Run(NewRun):
    """One request, as the database keeps it."""

    id: str
    created_at: str          # ISO 8601 UTC, as every time here
    finished_at: str | None
    state: State
    total: int
    done: int
    failed: int

    @property
    def pending(self) -> int:
        """Count the pairs that have neither a result nor a failure."""
        return self.total - self.done - self.failed


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the model wrote about one pair, or why it could not."""

    position: int
    status: Literal["done", "failed"]
    text: str
    thinking: str
    finish_reason: FinishReason | None
    token_ids: tuple[int, ...]      # as generated, the ending token included
    prompt_tokens: int
    seed: int
    batch_size: int                 # rows in the forward passes that made it
    job: int
    attempt: int
    worker: str
    device: str
    started_at: str
    finished_at: str
    error: str | None = None
