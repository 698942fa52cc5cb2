# SPDX-License-Identifier: Apache-2.0
"""The interface of a framework that encoders may come from."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_embed.encoders.engines.base import Engine
from ray_embed.encoders.spec import Encoder, EncoderSpec, Weights

# Builds an encoder. The arguments are the specification of the run, a copy of it whose files are on
# this machine, the number of threads, and the weights that an earlier start of the run saved.
BuildEncoder = Callable[[EncoderSpec, EncoderSpec, int, Weights | None], Encoder]
Shapes = dict[str, tuple[int | None, ...]]


class ModelOfAnotherFramework(Exception):  # noqa: N818 - it is no error of the user
    """The user's callable has returned a model that another framework builds: `model`.

    Only a call can tell, and calls are expensive, so the model is handed over.
    """

    def __init__(self, model: Any) -> None:
        super().__init__(type(model).__name__)
        self.model = model


def _nothing(spec: EncoderSpec) -> None:
    return None


def _no_imports(spec: EncoderSpec) -> tuple[str, ...]:
    return ()


def _no_files(path: Path) -> list[str]:
    return []


@dataclass(frozen=True, kw_only=True)
class Framework:
    """A framework: how its models are recognized, checked, built and run.

    The functions import the framework's packages themselves, so that other commands need none of
    them. Those with two specifications get the one of the run, whose model errors and the run
    folder name, and a copy of it whose model and weights are on this machine.

    Attributes:
        name: the name that `Encoder.framework` has.
        engines: the engines to try, from fastest to slowest. The last one needs no compilation.
        graph_file: the name of the file in ``encoder/`` for `Encoder.graph`.
        matches: returns whether a model is of this framework. It is called only if no earlier
            framework matches, and it must be fast. A callable is not called: Keras does that, and
            raises ModelOfAnotherFramework for an object that another framework matches.
        check: raises InputError if an option does not fit or a package is missing. It is called
            before anything starts, for a model on this machine.
        start_building: returns the function that builds encoders, one after the other. What
            several encoders of a process share belongs to that function.
        list_shapes: returns the output shapes of the models that ``--submodel`` accepts, and of the
            layers that ``--layer`` accepts, with None for the batch.
        has_gpu: returns whether the engines have a GPU.
        list_imports: returns the modules to import while Ray starts, when only the model is known.
        uses_tensorflow: whether building an encoder needs TensorFlow.
        list_companions: returns the names of other files that a model file needs, relative to its
            folder.
        packages: the packages whose versions can change numbers, besides those of all runs.
    """

    name: str
    engines: tuple[Engine, ...]
    graph_file: str
    matches: Callable[[EncoderSpec], bool]
    start_building: Callable[[], BuildEncoder]
    list_shapes: Callable[[EncoderSpec, EncoderSpec], tuple[Shapes, Shapes]]
    has_gpu: Callable[[], bool]
    check: Callable[[EncoderSpec], None] = _nothing
    list_imports: Callable[[EncoderSpec], tuple[str, ...]] = _no_imports
    uses_tensorflow: bool = False
    list_companions: Callable[[Path], list[str]] = _no_files
    packages: tuple[str, ...] = ()
