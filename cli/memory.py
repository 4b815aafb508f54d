"""The memory plan of a run that is not enqueued yet, for this machine or for another one."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from store.errors import SettingsError

if TYPE_CHECKING:
    from jobs.enqueue import Plan


def memory_lines(plan: "Plan", asked: int | None) -> Sequence[str]:
    """Write how a run would use the memory: within a limit that was asked for, else within this device's.

    What does not fit is said and not raised: the worker may run on another machine.
    """
    from jobs.memory import describe_plan, plan_memory

    limit = asked or _device_limit()
    if limit is None:
        return ["memory: not planned, MLX is not installed here; --memory-limit SIZE plans for another machine"]
    inputs, settings = plan.inputs, plan.request.settings
    try:
        memory = plan_memory(inputs.checkpoint, inputs.prompt, settings.sampling, limit,
                             batch_size=min(plan.request.batch_size, len(plan.pairs)),
                             images=len(inputs.embeddings.filenames))
    except SettingsError as error:
        return [str(error)]
    return ["memory:", *(f"  {line}" for line in describe_plan(memory))]


def _device_limit() -> int | None:
    """Ask MLX, where it is installed; `enqueue` itself works without."""
    try:
        from workers.device import memory_limit
    except ImportError:
        return None
    return memory_limit()
