"""Stopping a worker: the first signal lets it finish what is in hand, the second one does not."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from types import FrameType, TracebackType
from typing import Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SAME_PRESS = 0.2      # seconds; a program that runs us may pass on the Ctrl-C that the terminal has sent us already


class Stopped(Exception):      # noqa: N818  # a wish that was granted, not an error
    """A job was left before its end; its ticket goes back to the queue, its recorded rows stay."""


class Cancelled(Exception):      # noqa: N818  # a wish that was granted, not an error
    """A job's run was cancelled: its ticket is dropped, and put back if the cancel has been lifted by then."""

    def __init__(self, is_lifted: Callable[[], bool]) -> None:
        super().__init__("its run was cancelled")
        self.is_lifted = is_lifted


class Stop:
    """The wish to stop, from none (level 0) over "finish the slice in hand" (1) to "at the next step" (2).

    In a `with` block signals set it; its level, and the first signal, can be read afterwards.
    """

    def __init__(self) -> None:
        self.level = 0
        self.signal: int | None = None
        self._heard = float("-inf")      # seconds of the monotonic clock
        self._woken: SimpleQueue[None] = SimpleQueue()      # its put may interrupt its get, unlike an Event's
        self._former: dict[int, signal._HANDLER] = {}
        self._depth = 0

    @property
    def requested(self) -> bool:
        """Say whether to leave after the slice in hand."""
        return self.level >= 1

    @property
    def now(self) -> bool:
        """Say whether to leave at the next step."""
        return self.level >= 2

    def request(self, signum: int = signal.SIGTERM) -> None:
        """Raise the level by one, as a signal does."""
        self.level = min(self.level + 1, 2)
        if self.signal is None:
            self.signal = signum
        self._woken.put(None)

    def wait(self, seconds: float) -> bool:
        """Wait so long, or until a stop is requested, and say whether it is."""
        if not self.requested:
            with contextlib.suppress(Empty):
                self._woken.get(timeout=seconds)
        return self.requested

    def __enter__(self) -> Self:
        """Take over the signals, which only the main thread can. Blocks may be nested."""
        if self._depth == 0 and threading.current_thread() is threading.main_thread():
            self._former = {signum: signal.signal(signum, self._hear) for signum in SIGNALS}
        self._depth += 1
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Give the signals back."""
        self._depth -= 1
        if self._depth == 0:
            for signum, handler in self._former.items():
                signal.signal(signum, signal.SIG_DFL if handler is None else handler)
            self._former = {}

    def _hear(self, signum: int, frame: FrameType | None) -> None:
        if time.monotonic() - self._heard > SAME_PRESS:
            self._heard = time.monotonic()
            self.request(signum)
