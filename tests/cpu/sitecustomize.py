"""Every Python that a test starts has this on its path: MLX, where it is loaded, computes on the CPU."""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


class OnCpu:
    """Finds mlx.core as ever, and sets its device as soon as it is loaded."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return the spec of mlx.core; None for every other module."""
        spec = PathFinder.find_spec(name, path, target) if name == "mlx.core" else None
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def load_and_choose(module: ModuleType) -> None:
            load(module)
            module.set_default_device(module.cpu)

        spec.loader.exec_module = load_and_choose      # type: ignore[method-assign]  # of this one loader
        return spec


sys.meta_path.insert(0, OnCpu)
