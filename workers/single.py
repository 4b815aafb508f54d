"""One pair, now, in this process: for a first look, and to see that a recorded row can be made again. No queue."""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from jobs.inputs import Inputs, Settings, open_inputs
from jobs.memory import MemoryPlan, plan_memory
from store.database import Database
from store.embeddings import Embeddings
from store.errors import EmbeddingsError, RunError, SettingsError, WeightsError
from store.jobs import read_pairs
from store.records import Comparison, Pair, Run
from store.results import read_result
from workers import device
from workers.engine import Engine
from workers.model.load import load_text_model
from workers.reading import in_order, row_reader
from workers.report import Reporter
from workers.rows import Image, Row, Token
from workers.session import Session


@dataclass(frozen=True, slots=True)
class Chosen:
    """The pair that `generate` compares."""

    idx_a: int
    idx_b: int
    image_a: str
    image_b: str


class OnePair:
    """A checked request for one pair; `stream` loads the model and answers."""

    def __init__(self, settings: Settings, idx_a: int | None, idx_b: int | None, seed: int) -> None:
        """Check all inputs; raise DiptychError. An index that is None is drawn by the seed."""
        self._settings, self.seed = settings, seed
        self._inputs: Inputs = open_inputs(settings)
        self.pair = choose_pair(self._inputs.embeddings, idx_a, idx_b, seed)

    def stream(self) -> Iterator[str]:
        """Yield the text piece by piece, as far as it is certain; raise WeightsError where the model breaks."""
        inputs, pair = self._inputs, self.pair
        a, b = (Image(index, inputs.embeddings.read(index)) for index in (pair.idx_a, pair.idx_b))
        limits = self._plan().limits
        engine = Engine(load_text_model(inputs.checkpoint), inputs.checkpoint.eos_token_ids)
        text = inputs.tokenizer.stream(opened_thinking=inputs.prompt.opened_thinking)
        of = f"pair {pair.idx_a},{pair.idx_b} ({pair.image_a}, {pair.image_b})"
        for step in engine.generate(inputs.prompt, [Row(0, a, b, self.seed)], self._settings.sampling, limits):
            for token in step:
                yield text.add(_read_id(token, of, inputs))
        yield text.end()

    def _plan(self) -> MemoryPlan:
        limit = device.memory_limit()
        device.apply_limit(limit)
        return plan_memory(self._inputs.checkpoint, self._inputs.prompt, self._settings.sampling, limit, batch_size=1)


def _read_id(token: Token, of: str, inputs: Inputs) -> int:
    """Return a token's id; raise WeightsError where it means nothing, for embeddings are checked as they are read."""
    if token.error is not None:
        raise WeightsError(f"{of}: expected finite logits, found: {token.error}; its embeddings are finite, so look "
                           f"with `diptych doctor --verify` whether the weights in {inputs.checkpoint.folder} are "
                           "intact")
    return token.id


def choose_pair(embeddings: Embeddings, idx_a: int | None, idx_b: int | None, seed: int) -> Chosen:
    """Take the indices that are given, and draw the others, unequal as far as possible."""
    n = len(embeddings.filenames)
    for option, index in (("--a", idx_a), ("--b", idx_b)):
        if index is not None and not 0 <= index < n:
            raise SettingsError(f"{option}: expected an index from 0 to {n - 1} ({n} lines in "
                                f"{embeddings.folder / 'filenames.txt'}), found {index}")
    draw = random.Random(seed)
    a = idx_a if idx_a is not None else draw.choice([i for i in range(n) if i != idx_b] or [0])
    b = idx_b if idx_b is not None else draw.choice([i for i in range(n) if i != a] or [0])
    return Chosen(a, b, embeddings.filenames[a], embeddings.filenames[b])


@dataclass(frozen=True, slots=True)
class Replay:
    """A recorded row beside the same row made again."""

    recorded: tuple[int, ...]
    generated: tuple[int, ...]
    recorded_text: str
    generated_text: str
    batch_size: int      # rows in the forward passes that made it again

    @property
    def first_difference(self) -> int | None:
        """Return the 0-based place of the first token that differs; None where the rows are equal."""
        if self.recorded == self.generated:
            return None
        both = zip(self.recorded, self.generated, strict=False)
        shorter = min(len(self.recorded), len(self.generated))
        return next((place for place, (old, new) in enumerate(both) if old != new), shorter)


def replay(database: Database, session: Session, run: Run, position: int) -> Replay:
    """Generate a recorded row again: alone, and where that differs, in the composition of its job.

    On Metal a batch is not bitwise equal to its rows alone, so a near-tie can fall otherwise; its job decides.
    """
    recorded = _recorded(database, run, position)
    pairs = read_pairs(database, run.id, recorded.job)
    alone = _replay(session, run, recorded, [pair for pair in pairs if pair.position == position])
    if alone.first_difference is None or recorded.batch_size == 1:
        return alone
    return _replay(session, run, recorded, pairs)


def _recorded(database: Database, run: Run, position: int) -> Comparison:
    if not 0 <= position < run.total:
        raise RunError(f"run {run.id}: expected a position from 0 to {run.total - 1}, found {position}")
    recorded = read_result(database, run.id, position)
    if recorded is None or recorded.status != "done":
        found = "no result yet" if recorded is None else f"a failure: {recorded.error}"
        raise RunError(f"run {run.id} position {position}: expected a result to replay, found {found}")
    return recorded


def _replay(session: Session, run: Run, recorded: Comparison, pairs: Sequence[Pair]) -> Replay:
    loaded = session.prepare(run)
    rows = _rows(in_order(pairs, loaded.inputs), row_reader(run, loaded.inputs), recorded.position)
    limits = loaded.limits(min(len(pairs), recorded.batch_size))
    steps = loaded.engine.generate(loaded.inputs.prompt, rows, run.sampling, limits)
    pair = next(pair for pair in pairs if pair.position == recorded.position)
    of = f"run {run.id} position {pair.position}, pair {pair.idx_a},{pair.idx_b}"
    tokens = tuple(_read_id(token, of, loaded.inputs) for step in steps for token in step if token.key == pair.position)
    answer = loaded.inputs.tokenizer.split(tokens, opened_thinking=loaded.inputs.prompt.opened_thinking)
    return Replay(recorded.token_ids, tokens, recorded.text, answer.text, limits.rows)


def _rows(pairs: Iterable[Pair], read: Callable[[Pair], Row], wanted: int) -> Iterator[Row]:
    """Read the rows of a job; another one that cannot be read failed alone, and had no place in the batch."""
    for pair in pairs:
        try:
            yield read(pair)
        except EmbeddingsError:
            if pair.position == wanted:
                raise


def replay_run(database: Database, run: Run, position: int) -> Replay:
    """Replay with the files where the run recorded them."""
    session = Session(database, weights=None, embeds=None, reporter=Reporter())
    return replay(database, session, run, position)
