"""Keeping a Mac awake: an idle one would sleep in the middle of a night's run. Closing the lid sleeps all the same."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def awake() -> Iterator[None]:
    """Ask macOS not to sleep for as long as this process works; elsewhere do nothing.

    `caffeinate -w` ends with this process, whatever ends it.
    """
    process = None
    if sys.platform == "darwin":
        with suppress(OSError):      # without it the run goes on, and sleeps when the Mac does
            # In a session of its own it outlives the first Ctrl-C, after which the worker still finishes.
            process = subprocess.Popen(["caffeinate", "-i", "-w", str(os.getpid())], stdin=subprocess.DEVNULL,
                                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        yield
    finally:
        if process is not None:
            process.terminate()
            process.wait()
