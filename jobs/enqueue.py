"""From a request to a run: everything is checked first, then the store has it, then the queue. It never loads MLX."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jobs.changes import record_files
from jobs.environment import environment, mask_argv
from jobs.inputs import Inputs, Settings, open_inputs
from jobs.pairs import draw_pairs, read_pairs_file
from jobs.plan import first_images, plan_jobs
from jobs.queue import JobQueue, Ticket
from jobs.seeds import row_seed
from store.cache import DatabaseCache
from store.database import Database
from store.errors import SettingsError
from store.fingerprint import fingerprint
from store.records import NewRun, Pair, PairOrder, Run
from store.runs import create_run


@dataclass(frozen=True, slots=True)
class Request:
    """What a person asked `enqueue` for."""

    settings: Settings
    pairs_file: Path | None      # exactly one of pairs_file
    random: int | None           # and random is given
    seed: int
    batch_size: int
    name: str | None
    argv: tuple[str, ...]
    order: PairOrder = "grouped"


@dataclass(frozen=True, slots=True)
class Plan:
    """A request whose inputs have all been checked; nothing is written yet."""

    request: Request
    inputs: Inputs
    pairs: list[tuple[int, int]]
    pairs_sha256: str | None
    jobs: list[int]              # the job of each position

    @property
    def n_jobs(self) -> int:
        """Count the jobs."""
        return len(set(self.jobs))


def plan_run(request: Request) -> Plan:
    """Check everything that the run will need, and divide its pairs into jobs. Writes nothing."""
    inputs = open_inputs(request.settings)
    pairs, sha256 = _pairs(request, len(inputs.embeddings.filenames))
    inputs.embeddings.check_finite({index for pair in pairs for index in pair})
    first = first_images(pairs, inputs.prompt.images[0])
    return Plan(request, inputs, pairs, sha256, plan_jobs(first, request.batch_size, request.order))


def _pairs(request: Request, n_images: int) -> tuple[list[tuple[int, int]], str | None]:
    if (request.pairs_file is None) == (request.random is None):
        raise SettingsError("expected either a pairs file or --random N, found " +
                            ("neither" if request.pairs_file is None else "both"))
    if request.pairs_file is None:
        return draw_pairs(request.random or 0, n_images, request.seed), None
    read = read_pairs_file(request.pairs_file, n_images)
    return read.pairs, read.sha256


def enqueue_run(database: Database, queue: JobQueue, plan: Plan) -> Run:
    """Write the run to the store, all or nothing, then its tickets to the queue.

    Whatever happens between the two, `resume` puts the missing tickets on the queue.
    """
    run = record_run(database, plan)
    queue.put(Ticket(run.id, job) for job in sorted(set(plan.jobs)))
    return run


def record_run(database: Database, plan: Plan) -> Run:
    """Write the run with its pairs and jobs to the store, all or nothing; nobody works at it without tickets."""
    return create_run(database, _new_run(plan, DatabaseCache(database)), _rows(plan), plan.inputs.embeddings.filenames)


def _rows(plan: Plan) -> Iterator[Pair]:
    for position, ((idx_a, idx_b), job) in enumerate(zip(plan.pairs, plan.jobs, strict=True)):
        yield Pair(position, idx_a, idx_b, row_seed(plan.request.seed, position), job)


def _new_run(plan: Plan, cache: DatabaseCache) -> NewRun:
    request, settings, inputs = plan.request, plan.request.settings, plan.inputs
    facts = environment()
    return NewRun(
        name=request.name,
        prompt=settings.prompt,
        thinking=settings.thinking,
        sampling=settings.sampling,
        seed=request.seed,
        batch_size=request.batch_size,
        pairs_file=str(request.pairs_file.resolve()) if request.pairs_file else None,
        pairs_sha256=plan.pairs_sha256,
        embeddings_dir=str(settings.embeddings_dir.resolve()),
        embeddings_fingerprint=inputs.embeddings.fingerprint(cache),
        weights_dir=str(settings.weights_dir.resolve()),
        model_fingerprint=fingerprint(inputs.checkpoint.files, cache),
        version=facts.pop("diptych"),
        environment=facts | record_files(inputs, cache),
        argv=mask_argv(request.argv),
        pair_order=request.order,
    )
