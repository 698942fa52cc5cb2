# SPDX-License-Identifier: Apache-2.0
"""Copy a model and weights from an object store, as frameworks read only local files."""

import contextlib
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from ray_embed.core.uri import get_parent_uri, is_uri, join_uri, redact_uri
from ray_embed.encoders.spec import EncoderSpec
from ray_embed.errors import InputError
from ray_embed.storage.download import download


def _no_companions(spec: EncoderSpec) -> list[str]:
    return []


@contextlib.contextmanager
def local_copies(
    spec: EncoderSpec, list_companions: Callable[[EncoderSpec], list[str]] = _no_companions
) -> Iterator[EncoderSpec]:
    """Yield the specification with local copies in place of URIs; the copies are deleted on exit.

    Args:
        spec: the specification.
        list_companions: returns the names of the other files that a copied model needs beside it.

    Raises:
        InputError: a file does not exist. An InputError from inside the ``with`` block is raised
            again with the URI instead of the path of the copy.
        RunError: there is no space for the copies, or the storage fails.
    """
    with tempfile.TemporaryDirectory(prefix="ray_embed-") as scratch:
        copied: dict[str, str] = {}

        def copy(uri: str, option: str) -> str:
            into = Path(scratch) / option.strip("-")
            copied[str(into)] = redact_uri(get_parent_uri(uri))
            return str(download(uri, into, option))

        if isinstance(spec.model, str) and is_uri(spec.model) and spec.kept is None:
            uri = spec.model
            spec = replace(spec, model=copy(uri, "--model"))
            _copy_companions(list_companions(spec), Path(spec.model).parent, uri)
        if spec.weights is not None and is_uri(spec.weights):
            spec = replace(spec, weights=copy(spec.weights, "--weights"))
        try:
            yield spec
        except InputError as error:
            text = str(error)
            for local, uri in copied.items():
                text = text.replace(local, uri)
            raise InputError(text) from error


def _copy_companions(names: Iterable[str], folder: Path, uri: str) -> None:
    """Copy the other files that a model needs.

    Args:
        names: the files, relative to the folder of the model.
        folder: the folder of the model's copy.
        uri: where the model comes from.

    Raises:
        InputError: a file does not exist.
    """
    for name in names:
        download(join_uri(get_parent_uri(uri), name), (folder / name).parent, "--model")
