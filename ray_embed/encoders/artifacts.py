# SPDX-License-Identifier: Apache-2.0
"""Keeps the encoder in the run folder, so that going on uses the very same one.

``encoder/weights.npz`` holds the weights in the model's order, ``encoder/graph.pb`` the graph that
was run (variables folded in), ``encoder/encoder.json`` what it is and where its ends are.
"""

import hashlib
import io
import json
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from ray_embed.core.arrays import Array
from ray_embed.encoders.spec import GRAPH_ENGINES, Encoder
from ray_embed.errors import InputError, StorageError
from ray_embed.storage import manifest
from ray_embed.storage.filesystem import Folder

_WEIGHTS, _GRAPH, _ABOUT = "encoder/weights.npz", "encoder/graph.pb", "encoder/encoder.json"


def keep(folder: Folder, encoder: Encoder) -> None:
    """Write the encoder to the run folder."""
    # NumPy's files know no bfloat16: such weights are kept as float32, which holds each of them.
    arrays = {
        f"{at:05d}": value.astype(np.float32) if value.dtype.kind == "V" else value
        for at, value in enumerate(encoder.weights)
    }
    sink = io.BytesIO()
    np.savez(sink, allow_pickle=False, **arrays)
    contents = {_WEIGHTS: sink.getvalue()}
    if encoder.graph is not None:
        contents[_GRAPH] = encoder.graph
    for name, content in contents.items():
        folder.write(name, content)
    files = {name: _digest(content) for name, content in contents.items()}
    described = json.loads(json.dumps(about(encoder) | {"files": files}, default=str))
    described["checksum"] = manifest.checksum(described)
    folder.write(_ABOUT, json.dumps(described, indent=1).encode())


def is_sound(folder: Folder) -> bool:
    """Whether all is there, and as it was written."""
    try:
        for name in _described(folder)["files"]:
            _read(folder, name)
    except (StorageError, InputError):
        return False
    return True


def _described(folder: Folder) -> dict[str, Any]:
    """Read what was written of the encoder.

    Raises:
        InputError: it is gone, or not what was written.
    """
    try:
        content: dict[str, Any] = json.loads(folder.read(_ABOUT)) if folder.exists(_ABOUT) else {}
        if content.pop("checksum", None) == manifest.checksum(content):
            return content
    except (ValueError, TypeError, AttributeError) as error:
        raise _damaged(folder, _ABOUT) from error
    raise _damaged(folder, _ABOUT)


def _read(folder: Folder, name: str) -> bytes:
    """Read a file that was kept.

    Raises:
        InputError: it is gone, or not what was written.
    """
    digest = _described(folder)["files"].get(name)
    content = folder.read(name) if folder.exists(name) else None
    if content is None or _digest(content) != digest:
        raise _damaged(folder, name)
    return content


def _damaged(folder: Folder, name: str) -> InputError:
    return InputError(
        f"{folder.shown(name)}: it is gone, or damaged, and the run cannot go on without it; put "
        "back what was there, or start anew with --overwrite"
    )


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def about(encoder: Encoder) -> dict[str, Any]:
    """Describe the encoder as plain data."""
    return {
        "model": encoder.spec.model_name,
        "engine": encoder.engine,
        "image_shape": list(encoder.image_shape),
        "batch_size": encoder.spec.batch_size,
        "outputs": [asdict(output) for output in encoder.outputs],
        "architecture": encoder.architecture,
        "weights": encoder.weights_digest,
        "input_name": encoder.input_name,
        "output_names": list(encoder.output_names),
        "rescaling": asdict(encoder.rescaling),
    }


def kept_weights(folder: Folder) -> tuple[Array, ...] | None:
    """Read the weights that an earlier start kept; None where there are none."""
    if not folder.exists(_ABOUT):
        return None
    with np.load(io.BytesIO(_read(folder, _WEIGHTS)), allow_pickle=False) as arrays:
        return tuple(arrays[name] for name in sorted(arrays.files))


def without_contents(encoder: Encoder) -> Encoder:
    """Give the encoder without what is kept of it: its graph and weights."""
    return replace(encoder, graph=None, weights=())


def with_contents(folder: Folder, encoder: Encoder) -> Encoder:
    """Give the encoder with what its engine needs of what is kept: the graph, or the weights.

    Raises:
        InputError: it is gone, or damaged.
    """
    if encoder.engine not in GRAPH_ENGINES:
        return replace(encoder, weights=kept_weights(folder) or ())
    graph = _read(folder, _GRAPH)
    kept = _described(folder)
    return replace(
        encoder,
        graph=graph,
        input_name=kept["input_name"],
        output_names=tuple(kept["output_names"]),
    )
