# SPDX-License-Identifier: Apache-2.0
"""All libraries of PyTorch encoders. A model belongs to the first whose prefix or folder fits."""

from pathlib import Path
from typing import Any

from ray_embed.core.model_names import names_model
from ray_embed.core.uri import is_uri
from ray_embed.encoders.torch_models.libraries import open_clip, timm, transformers
from ray_embed.encoders.torch_models.libraries.base import Library

# A folder of open_clip or timm may also have the description of a later library.
LIBRARIES: tuple[Library, ...] = (open_clip.LIBRARY, timm.LIBRARY, transformers.LIBRARY)


def find_library(model: Any) -> tuple[Library, str] | None:
    """Return the library of a model and the name that it has there, or None if it is of no library.

    The name of a folder is its path.
    """
    if not isinstance(model, str):
        return None
    if names_model(model):
        named = (library for library in LIBRARIES if model.startswith(library.prefix))
        return next(((each, model.removeprefix(each.prefix)) for each in named), None)
    if is_uri(model) or not Path(model).is_dir():
        return None
    return next(((each, model) for each in LIBRARIES if each.is_folder(Path(model))), None)
