# SPDX-License-Identifier: Apache-2.0
"""The interface of a form that a model may be given in."""

from collections.abc import Callable
from dataclasses import dataclass

from ray_embed.encoders.loaded_model import LoadedModel
from ray_embed.encoders.spec import EncoderSpec


@dataclass(frozen=True)
class Form:
    """A form that a model may be given in.

    Attributes:
        matches: returns whether the model has this form. The forms before it do not match.
        load: returns the model. It raises InputError if the model is missing, damaged or unsafe.
    """

    matches: Callable[[EncoderSpec], bool]
    load: Callable[[EncoderSpec], LoadedModel]
