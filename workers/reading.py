"""The rows of a job: its pairs with their embeddings, read ahead by a thread while the device computes."""

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

from jobs.inputs import Inputs
from store.errors import EmbeddingsError
from store.records import Pair, Run
from workers.rows import Image, Row

AHEAD = 8      # rows; of two images of 2 MB each for the 9B model

Read = tuple[Pair, Row | EmbeddingsError]


def in_order(pairs: Sequence[Pair], inputs: Inputs) -> list[Pair]:
    """Put the pairs of a job in the order in which they are computed: those with the same first image together."""
    first_is_a = inputs.prompt.images[0] == "a"
    return sorted(pairs, key=lambda pair: (pair.idx_a if first_is_a else pair.idx_b, pair.position))


def read_row(run: Run, inputs: Inputs, pair: Pair) -> Row:
    """Read the embeddings of a pair; raise EmbeddingsError where they cannot be used."""
    a, b = (Image((run.embeddings_fingerprint, index), inputs.embeddings.read(index))
            for index in (pair.idx_a, pair.idx_b))
    return Row(key=pair.position, image_a=a, image_b=b, seed=pair.seed)


def read_ahead(pairs: Sequence[Pair], read: Callable[[Pair], Row], ahead: int = AHEAD) -> Generator[Read, None, None]:
    """Yield each pair with its row, or with the error that keeps it from being one; read some rows ahead."""
    with ThreadPoolExecutor(1, thread_name_prefix="diptych-read") as thread:
        coming: deque[tuple[Pair, Future[Row]]] = deque()
        left = iter(pairs)
        try:
            while True:
                coming.extend((pair, thread.submit(read, pair)) for pair in islice(left, ahead - len(coming)))
                if not coming:
                    return
                pair, future = coming.popleft()
                yield pair, _outcome(future)
        finally:
            thread.shutdown(cancel_futures=True)


def _outcome(future: Future[Row]) -> Row | EmbeddingsError:
    try:
        return future.result()
    except EmbeddingsError as error:
        return error
