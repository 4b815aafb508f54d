"""One model in memory, and beside it what the run in hand needs: embeddings, prompt, tokenizer."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from jobs.changes import Kind, find_changes, find_changes_in, run_files
from jobs.inputs import Inputs, Settings, open_inputs
from jobs.limits import Limits
from jobs.memory import MemoryPlan, plan_memory
from store.cache import DatabaseCache
from store.database import Database
from store.errors import DiptychError, EmbeddingsError, SettingsError, WeightsError
from store.fingerprint import fingerprint
from store.records import Run
from workers import device
from workers.engine import Engine
from workers.model.load import load_text_model
from workers.report import Reporter

SHOWN = 3      # files that have changed, in an error

_NOT_THE_RUNS: dict[Kind, tuple[type[DiptychError], str]] = {
    "weights_files": (WeightsError, "the checkpoint is not the one"),
    "embeddings_files": (EmbeddingsError, "the embeddings are not those"),
}


@dataclass(frozen=True, slots=True)
class Loaded:
    """All that a job of one run computes with."""

    inputs: Inputs
    engine: Engine
    plan: MemoryPlan

    def limits(self, pairs: int) -> Limits:
        """Return what the engine may hold for so many pairs."""
        return replace(self.plan.limits, rows=min(self.plan.rows, pairs))


class Session:
    """Keeps the model of the last run; a run with another checkpoint takes its place.

    `weights` and `embeds` override where runs recorded them; the fingerprints must be those of the run all the same.
    """

    def __init__(
        self, database: Database, *, weights: Path | None, embeds: Path | None, reporter: Reporter,
        memory_limit: int | None = None,
    ) -> None:
        """Hold MLX to `memory_limit` bytes, or to what the device has; raise SettingsError where it has less."""
        self._hashes = DatabaseCache(database)
        self._weights, self._embeds = weights, embeds
        self._reporter = reporter
        self._limit = device.memory_limit(memory_limit)
        device.apply_limit(self._limit)
        self._opened: tuple[str, Inputs, MemoryPlan] | None = None      # of the run with this id
        self._model: str | None = None           # fingerprint of the checkpoint that the engine came from
        self._engine: Engine | None = None
        self._ready: str | None = None           # id of the run that was prepared last

    def holds(self, run_id: str) -> bool:
        """Say whether all that this run needs is here; whether its files are still the same, only `prepare` knows."""
        return self._ready == run_id

    def prepare(self, run: Run) -> Loaded:
        """Load what this run needs, unless it is here; raise DiptychError where the files are no longer the run's."""
        self._ready = None
        inputs, plan = self._open(run)
        self._check_unchanged(run, inputs)
        if self._engine is None or self._model != run.model_fingerprint:
            self._engine = None      # before the next one is loaded: two do not fit
            self._reporter.loading(run)
            self._engine = Engine(load_text_model(inputs.checkpoint), inputs.checkpoint.eos_token_ids)
            self._model = run.model_fingerprint
        self._ready = run.id
        return Loaded(inputs, self._engine, plan)

    def _open(self, run: Run) -> tuple[Inputs, MemoryPlan]:
        if self._opened is None or self._opened[0] != run.id:
            try:
                inputs = open_inputs(self._settings(run))
            except (EmbeddingsError, SettingsError, WeightsError):
                self._check_there(run)      # that a file has changed says more than what is wrong with it
                raise
            self._opened = run.id, inputs, self._plan(run, inputs)
        return self._opened[1:]

    def _plan(self, run: Run, inputs: Inputs) -> MemoryPlan:
        plan = plan_memory(inputs.checkpoint, inputs.prompt, run.sampling, self._limit, batch_size=run.batch_size,
                           images=len(inputs.embeddings.filenames))
        self._reporter.planned(run, plan)
        return plan

    def _settings(self, run: Run) -> Settings:
        return Settings(
            embeddings_dir=self._embeds or Path(run.embeddings_dir),
            weights_dir=self._weights or Path(run.weights_dir),
            prompt=run.prompt, thinking=run.thinking, sampling=run.sampling,
        )

    def _check_unchanged(self, run: Run, inputs: Inputs) -> None:
        """A run never mixes configurations."""
        checkpoint, embeddings = inputs.checkpoint, inputs.embeddings
        self._check(run, "weights_files", inputs, lambda: fingerprint(checkpoint.files, self._hashes))
        self._check(run, "embeddings_files", inputs, lambda: embeddings.fingerprint(self._hashes))

    def _check(self, run: Run, kind: Kind, inputs: Inputs, read: Callable[[], str]) -> None:
        recorded = run.model_fingerprint if kind == "weights_files" else run.embeddings_fingerprint
        files = run_files(inputs)[kind]
        try:
            if (now := read()) == recorded:
                return
            changes = find_changes(run, kind, files, self._hashes)
            what = changes or [f"expected fingerprint {recorded[:12]}, found {now[:12]}"]
        except OSError as lost:      # the disk was ejected, say
            what = [f"expected fingerprint {recorded[:12]}, found {lost}"]
        raise _refusal(run, kind, files[0].parent, what)

    def _check_there(self, run: Run) -> None:
        """Raise what has changed in the files of a run that cannot be opened."""
        settings = self._settings(run)
        folders: dict[Kind, Path] = {"weights_files": settings.weights_dir, "embeddings_files": settings.embeddings_dir}
        for kind, folder in folders.items():
            with suppress(OSError):
                if changes := find_changes_in(run, kind, folder, self._hashes):
                    raise _refusal(run, kind, folder, changes)


def _refusal(run: Run, kind: Kind, folder: Path, changes: Sequence[str]) -> DiptychError:
    """Return the error for files that are not a run's."""
    error, what = _NOT_THE_RUNS[kind]
    more = f", and {len(changes) - SHOWN:,} more" if len(changes) > SHOWN else ""
    return error(f"{folder}: {what} that run {run.id} was enqueued with: {', '.join(changes[:SHOWN])}{more}; put the "
                 "files back, name where they are with --weights or --embeds, or enqueue the pairs anew")
