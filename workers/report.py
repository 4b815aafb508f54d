"""Who hears what a worker does. The worker tells it all; a command line shows what it likes of it."""

from jobs.memory import MemoryPlan
from store.records import Comparison, Pair, Run


class Reporter:
    """Hears everything and does nothing; override what is of interest. Called in the thread that does the work."""

    def planned(self, run: Run, plan: MemoryPlan) -> None:
        """Hear what memory this run will take."""

    def loading(self, run: Run) -> None:
        """Hear that the model of this run is being loaded."""

    def started(self, run: Run, job: int, pairs: int) -> None:
        """Hear that a job begins."""

    def row(self, run: Run, pair: Pair, result: Comparison) -> None:
        """Hear that a pair is finished; it is recorded within 30 s."""

    def finished(self, run: Run, job: int, seconds: float) -> None:
        """Hear that a job is recorded whole."""
