"""Makes lm-evaluation-harness know the model ``frcli``.

It has no entry points for models, so a ``.pth`` file beside the installed package imports this module when Python
starts; nothing more happens until ``lm_eval`` loads its models, and nothing of frcli or lm_eval is loaded before.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_MODELS = "lm_eval.models"


class _AfterModels:
    """Finds ``lm_eval.models`` where it is, and registers ours when it has been loaded."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _MODELS:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_register(module: ModuleType) -> None:
                load(module)
                with suppress(ImportError, AttributeError, TypeError):  # another version of lm-eval must go on working
                    register()

            spec.loader.exec_module = load_and_register  # type: ignore[method-assign]
        return spec


def register() -> None:
    """Give lm-eval the name ``frcli``; the model itself is imported when it is asked for."""
    from lm_eval.api.registry import model_registry

    if "frcli" not in model_registry:
        model_registry.register("frcli", target="frcli.evaluation.harness:FrcliLM")


if not any(isinstance(finder, _AfterModels) for finder in sys.meta_path):
    sys.meta_path.insert(0, _AfterModels())
