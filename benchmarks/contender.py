"""A contender as the driver sees it: a process that loads once and answers requests, a JSON object a line."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

SCRIPTS = Path(__file__).with_name("contenders")


class ContenderError(Exception):
    """A contender that does not start, or ends before it has answered."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What to start for a contender."""

    name: str                         # on the command line and in the JSON file
    title: str                        # in the table
    script: str                       # in contenders/
    options: tuple[str, ...] = ()
    own: bool = False                 # runs in the interpreter of the driver, not in that of --python
    blas: bool = True                 # gets the library of matrix products that is loaded first


class Contender:
    """A running process; a context manager that ends it."""

    def __init__(self, kind: Kind, python: str, folder: Path, env: Mapping[str, str]) -> None:
        """Start the process, which loads while others start; raise ContenderError where there is no interpreter."""
        self.kind, self._python = kind, python
        command = [python, str(SCRIPTS / kind.script), str(folder), *kind.options]
        pipe = subprocess.PIPE
        try:
            self._process = subprocess.Popen(command, env=dict(env), stdin=pipe, stdout=pipe, encoding="utf-8")
        except OSError as error:
            raise ContenderError(f"{kind.title}: expected an interpreter, found {error}; {self._mend}") from None

    def ready(self) -> dict[str, Any]:
        """Wait until it has loaded; return its `versions` and the `blas` files that it has mapped."""
        return self._read()

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and wait for its answer; raise ContenderError where none comes."""
        assert self._process.stdin is not None
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise self._ended() from None
        return self._read()

    def generate(self, pairs: Sequence[tuple[int, int]], new_tokens: int) -> dict[str, Any]:
        """Let it generate; raise ContenderError unless each pair has so many tokens."""
        answer = self.ask(pairs=pairs, new_tokens=new_tokens)
        lengths = [len(tokens) for tokens in answer["tokens"]]
        if lengths != [new_tokens] * len(pairs):
            raise ContenderError(f"{self.kind.title}: expected {len(pairs)} rows of {new_tokens} tokens, "
                                 f"found {lengths}; its rate would not be comparable")
        return answer

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _ended(self) -> ContenderError:
        return ContenderError(
            f"{self.kind.title}: expected an answer, found that {self._python} ended with status "
            f"{self._process.wait()} (its own words stand above); {self._mend}")

    @property
    def _mend(self) -> str:
        return ("install benchmarks/requirements.txt in a virtual environment and name its interpreter with --python, "
                f"or leave it out with --without {self.kind.name}")

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None,
    ) -> None:
        """Let the process end, at once where something failed."""
        if kind is not None:
            self._process.kill()
        self._process.communicate()
