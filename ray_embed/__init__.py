# SPDX-License-Identifier: Apache-2.0
"""Embed images with an encoder, and see how well its features cluster.

`run` embeds images and builds TensorBoard's projector, `load` opens a finished run, and `compare`
evaluates several runs on the same records. A `Session` says how long runs share Ray. Importing
this package imports neither TensorFlow nor Ray.
"""

from typing import TYPE_CHECKING, Any

from ray_embed._version import __version__
from ray_embed.errors import InputError, RayEmbedError, RunError

if TYPE_CHECKING:
    from ray_embed.analysis.comparison.compare import Comparison, compare
    from ray_embed.config import RunConfig
    from ray_embed.pipeline import extract, run
    from ray_embed.projector.reduce import reduce
    from ray_embed.results import Run, load
    from ray_embed.runtime.warm_ray import Session
    from ray_embed.sweeps.sweep import sweep

__all__ = [
    "Comparison",
    "InputError",
    "RayEmbedError",
    "Run",
    "RunConfig",
    "RunError",
    "Session",
    "__version__",
    "compare",
    "extract",
    "load",
    "reduce",
    "run",
    "sweep",
]

_LAZY_IMPORTS = {
    "Comparison": "analysis.comparison.compare",
    "compare": "analysis.comparison.compare",
    "RunConfig": "config",
    "Run": "results",
    "load": "results",
    "extract": "pipeline",
    "run": "pipeline",
    "reduce": "projector.reduce",
    "Session": "runtime.warm_ray",
    "sweep": "sweeps.sweep",
}


def __getattr__(name: str) -> Any:
    # Lazy imports: importing Ray and TensorFlow takes seconds, and reading a run does not need
    # them.
    if name not in _LAZY_IMPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f"ray_embed.{_LAZY_IMPORTS[name]}"), name)
    globals()[name] = value
    return value
