# SPDX-License-Identifier: Apache-2.0
"""The interface of a form in which a model may be given."""

from collections.abc import Callable
from dataclasses import dataclass

from ray_embed.encoders.loaded_model import LoadedModel
from ray_embed.encoders.spec import EncoderSpec


@dataclass(frozen=True)
class Form:
    """A form in which a model may be given.

    Attributes:
        matches: returns whether the model has this form. It is called only if no earlier form
            matches.
        load: returns the model. It raises InputError if the model is missing, damaged or unsafe.
    """

    matches: Callable[[EncoderSpec], bool]
    load: Callable[[EncoderSpec], LoadedModel]
