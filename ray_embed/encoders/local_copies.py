# SPDX-License-Identifier: Apache-2.0
"""Model and weights on an object store: TensorFlow and Keras read local files only."""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ray_embed.core.uri import is_uri, parent, shown
from ray_embed.encoders.spec import EncoderSpec
from ray_embed.errors import InputError
from ray_embed.storage.download import fetched


@contextlib.contextmanager
def at_hand(spec: EncoderSpec) -> Iterator[EncoderSpec]:
    """Give the specification with local copies of what is a URI, which are gone afterwards.

    Raises:
        InputError: there is no such file; or as what is done with them raises it, the URI named.
        RunError: there is no room for the copies, or the storage fails.
    """
    with tempfile.TemporaryDirectory(prefix="ray_embed-") as scratch:
        copied: dict[str, str] = {}

        def copy(uri: str, option: str) -> str:
            into = Path(scratch) / option.strip("-")
            copied[str(into)] = shown(parent(uri))
            return str(fetched(uri, into, option))

        if isinstance(spec.model, str) and is_uri(spec.model):
            spec = replace(spec, model=copy(spec.model, "--model"))
        if spec.weights is not None and is_uri(spec.weights):
            spec = replace(spec, weights=copy(spec.weights, "--weights"))
        try:
            yield spec
        except InputError as error:
            text = str(error)
            for local, uri in copied.items():
                text = text.replace(local, uri)
            raise InputError(text) from error
