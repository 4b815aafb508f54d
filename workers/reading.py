"""The rows of a job: its pairs with their embeddings, read ahead by a thread while the device computes."""

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import islice

from jobs.inputs import Inputs
from store.database import batched
from store.errors import EmbeddingsError
from store.records import Pair, Run
from workers.rows import Image, Row

AHEAD = 16     # rows; of two images of 2 MB each for the 9B model

Read = tuple[Pair, Row | EmbeddingsError]


def in_order(pairs: Sequence[Pair], inputs: Inputs) -> list[Pair]:
    """Put the pairs of a job in the order in which they are computed: those with the same first image together."""
    first_is_a = inputs.prompt.images[0] == "a"
    return sorted(pairs, key=lambda pair: (pair.idx_a if first_is_a else pair.idx_b, pair.position))


def row_reader(run: Run, inputs: Inputs) -> Callable[[Pair], Row]:
    """Make a function that reads the embeddings of a pair; it raises EmbeddingsError where they cannot be used.

    An image that some pairs behind each other have in common is read once.
    """

    @lru_cache(maxsize=AHEAD)
    def read_image(index: int) -> Image:
        return Image((run.embeddings_fingerprint, index), inputs.embeddings.read(index))

    def read(pair: Pair) -> Row:
        return Row(key=pair.position, image_a=read_image(pair.idx_a), image_b=read_image(pair.idx_b), seed=pair.seed)

    return read


def read_ahead(pairs: Sequence[Pair], read: Callable[[Pair], Row], ahead: int = AHEAD) -> Generator[Read, None, None]:
    """Yield each pair with its row, or with the error that keeps it from being one; read some rows ahead."""

    def read_block(block: list[Pair]) -> list[Read]:
        return [(pair, _outcome(read, pair)) for pair in block]

    blocks = batched(pairs, ahead // 2)      # one in hand, one to come
    with ThreadPoolExecutor(1, thread_name_prefix="diptych-read") as thread:
        try:
            coming = deque(thread.submit(read_block, block) for block in islice(blocks, 2))
            while coming:
                yield from coming.popleft().result()
                coming.extend(thread.submit(read_block, block) for block in islice(blocks, 1))
        finally:
            thread.shutdown(cancel_futures=True)


def _outcome(read: Callable[[Pair], Row], pair: Pair) -> Row | EmbeddingsError:
    try:
        return read(pair)
    except EmbeddingsError as error:
        return error
