"""The engine: image embeddings and token ids in, tokens out. It knows no queue, no SQL and no paths."""

from collections.abc import Generator, Iterable
from itertools import islice

from jobs.limits import Limits
from jobs.prompt import Prompt
from store.records import Sampling
from workers.decode import Batch
from workers.model.text import TextModel
from workers.prefill import Counts, Prefill, PrefixCache
from workers.rows import Row, Token

WASTE = 8      # of so many places of a slice, one may stand empty before rows join, or those left close up

Steps = Generator[list[Token], None, None]


class Engine:
    """Generates for rows that share a prompt, with one model; keeps prefixes from call to call."""

    def __init__(self, model: TextModel, eos_token_ids: Iterable[int]) -> None:
        """Take a loaded model, and the tokens that end a row."""
        self.model = model
        self.eos_token_ids = frozenset(eos_token_ids)
        self.counts = Counts()
        self._prefixes = PrefixCache()

    def generate(self, prompt: Prompt, rows: Iterable[Row], sampling: Sampling, limits: Limits) -> Steps:
        """Yield the tokens of rows: a list a decode step, and an empty list after each chunk of the prefill.

        At most `limits.rows` are computed side by side; the others are taken from `rows` when places become free. A
        row's tokens depend on its images, its seed and the settings, not on the rows beside it. Closing the generator
        between two lists stops the work; when `rows` ends, those at hand are finished.
        """
        waiting = _Waiting(rows)
        prefill = Prefill(self.model, prompt, limits, self._prefixes, self.counts)
        batch = Batch(self.model, self.eos_token_ids, prompt, sampling, limits.rows, prefill.next_position)
        enough = min(prefill.rows, max(1, limits.rows // WASTE))      # free places, to be filled
        while True:
            if (not batch.live or batch.free >= enough) and waiting:
                yield from self._fill(batch, prefill, waiting)
            elif batch.ended * WASTE >= batch.live + batch.ended:
                batch.close_up()
            if not batch.live:
                return
            yield batch.step()

    def _fill(self, batch: Batch, prefill: Prefill, waiting: "_Waiting") -> Steps:
        while batch.free and waiting:
            rows = waiting.take(min(batch.free, prefill.rows))
            ends = yield from prefill.run(rows, batch.cache, batch.close_up())
            batch.join(rows, ends)


class _Waiting:
    """Rows that have no place yet; one is asked for when there is a place."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows = iter(rows)
        self._first: list[Row] = []

    def __bool__(self) -> bool:
        self._first = self._first or list(islice(self._rows, 1))
        return bool(self._first)

    def take(self, count: int) -> list[Row]:
        taken = [*self._first, *islice(self._rows, count - len(self._first))]
        self._first = []
        return taken
