# SPDX-License-Identifier: Apache-2.0
"""The interface of a library of PyTorch encoders that are given by name."""

import difflib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray_embed.encoders.spec import EncoderSpec
from ray_embed.errors import InputError

_MOST_SUGGESTED = 5


@dataclass(frozen=True, kw_only=True)
class NamedModule:
    """A module of a library.

    Attributes:
        module: the module. It takes images (N, C, H, W).
        pixels: how the library prepares pixels, by the names of the fields of `RunConfig`.
        image_size: (H, W) of the images that it was trained with.
        outputs: functions of images, by names that ``--layer`` accepts besides those of modules.
        default_layer: the layer to take if the user names none, or None for the only output.
        untrained: the names of parameters that the published weights lack, so that their values are
            random.
        weights_prefix: what the names of the module's weights begin with in a file of the library.
            Such a file may also have weights of other parts.
        notes: choices that were made.
    """

    module: Any
    pixels: dict[str, Any] = field(default_factory=dict)
    image_size: tuple[int, int] | None = None
    outputs: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)
    default_layer: str | None = None
    untrained: frozenset[str] = frozenset()
    weights_prefix: str = ""
    notes: tuple[str, ...] = ()


def explain_unknown_name(where: str, module: Any, name: str) -> InputError:
    """Return an error for the user about a model that a library does not have.

    Args:
        where: what the message begins with.
        module: the library, whose prefix is its name, and whose `list_models` lists its models.
        name: the name that was given.
    """
    package = module.__name__
    close = difflib.get_close_matches(name, module.list_models(), _MOST_SUGGESTED, 0.5)
    listed = ", ".join(f"{package}:{each}" for each in close)
    return InputError(
        f"{where}: {package} {module.__version__} has no model of this name"
        f"{f'; did you mean {listed}?' if close else ''}; python -c 'import {package}; "
        f"print({package}.list_models())' lists them"
    )


@dataclass(frozen=True, kw_only=True)
class Library:
    """A library of encoders.

    Attributes:
        prefix: what ``--model`` begins with, up to the colon.
        package: the name by which it is imported.
        extra: the extra of ray_embed that installs it.
        is_folder: returns whether the library wrote a folder, which is then a model without prefix.
        load: returns a module. The arguments are the specification, whose model has a prefix or is
            a folder; the name after the prefix, or the folder; and whether to load the published
            weights. It raises InputError if the library does not have the model.
    """

    prefix: str
    package: str
    extra: str
    is_folder: Callable[[Path], bool]
    load: Callable[[EncoderSpec, str, bool], NamedModule]

    def check(self, spec: EncoderSpec) -> None:
        """Check that the library is installed.

        Raises:
            InputError: it is not.
        """
        if importlib.util.find_spec(self.package) is None:
            raise InputError(
                f"--model {spec.model_name}: its library is not installed; "
                f"pip install 'ray_embed[{self.extra}]'"
            )
