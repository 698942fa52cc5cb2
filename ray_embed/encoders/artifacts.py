# SPDX-License-Identifier: Apache-2.0
"""Save the encoder in the run folder, so that a resumed run uses the same one.

``encoder/weights.npz`` holds the weights in the model's order. ``encoder/graph.pb`` (or the name
that the framework or the engine gives it) holds the graph with its weights, and
``encoder/encoder.json`` holds a description with the names of the graph's tensors.
``encoder/preprocessing.pb`` holds the graph of ``--preprocess``, if the encoder's graph does not
contain it. ``encoder/model.json`` holds the layers of a model that is known by a name only.
"""

import hashlib
import io
import json
import math
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from ray_embed.config import lists_to_tuples
from ray_embed.core.arrays import Array
from ray_embed.encoders.engines.registry import name_graph_file, runs_graph
from ray_embed.encoders.rescaling import Rescaling
from ray_embed.encoders.spec import Encoder, EncoderSpec, KeptModel, Output, TensorFlowGraph
from ray_embed.errors import InputError, StorageError
from ray_embed.storage import layout, manifest
from ray_embed.storage.filesystem import Folder

_WEIGHTS, _PREPROCESSING, _DESCRIPTION, _MODEL = (
    f"{layout.ENCODER}/{name}"
    for name in ("weights.npz", "preprocessing.pb", "encoder.json", "model.json")
)
# What descriptions do not name.
_DEFAULT_FRAMEWORK = "keras"


def save_encoder(folder: Folder, encoder: Encoder) -> None:
    """Write the encoder to the run folder."""
    # NumPy files do not support bfloat16, but float32 can represent all of its values.
    arrays = {
        f"{index:05d}": value.astype(np.float32) if value.dtype.kind == "V" else value
        for index, value in enumerate(encoder.weights)
    }
    sink = io.BytesIO()
    np.savez(sink, allow_pickle=False, **arrays)
    contents = {_WEIGHTS: sink.getvalue()}
    if encoder.graph is not None:
        contents[_name_graph(encoder)] = encoder.graph
    if encoder.preprocessing is not None:
        contents[_PREPROCESSING] = encoder.preprocessing.content
    if encoder.spec.kept is not None:
        contents[_MODEL] = json.dumps(asdict(encoder.spec.kept), indent=1).encode()
    for name, content in contents.items():
        folder.write(name, content)
    files = {name: _digest(content) for name, content in contents.items()}
    description = describe_encoder(encoder) | {"files": files}
    description = json.loads(json.dumps(description, default=str))
    description["checksum"] = manifest.compute_checksum(description)
    folder.write(_DESCRIPTION, json.dumps(description, indent=1).encode())


def _name_graph(encoder: Encoder) -> str:
    return f"{layout.ENCODER}/{name_graph_file(encoder)}"


def is_intact(folder: Folder) -> bool:
    """Return whether all files exist and are unchanged."""
    try:
        for name in _read_description(folder)["files"]:
            _read_file(folder, name)
    except (StorageError, InputError):
        return False
    return True


def _read_description(folder: Folder) -> dict[str, Any]:
    """Return the description of the encoder.

    Raises:
        InputError: it is missing or damaged.
    """
    try:
        content: dict[str, Any] = (
            json.loads(folder.read(_DESCRIPTION)) if folder.exists(_DESCRIPTION) else {}
        )
        if content.pop("checksum", None) == manifest.compute_checksum(content):
            return content
    except (ValueError, TypeError, AttributeError) as error:
        raise _damaged(folder, _DESCRIPTION) from error
    raise _damaged(folder, _DESCRIPTION)


def _read_file(folder: Folder, name: str) -> bytes:
    """Return the content of a file of the encoder.

    Raises:
        InputError: it is missing or damaged.
    """
    digest = _read_description(folder)["files"].get(name)
    content = folder.read(name) if folder.exists(name) else None
    if content is None or _digest(content) != digest:
        raise _damaged(folder, name)
    return content


def _damaged(folder: Folder, name: str) -> InputError:
    return InputError(
        f"{folder.display_path(name)}: it is missing or damaged, and the run cannot be resumed "
        "without it; restore it, or start again with --overwrite"
    )


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def describe_encoder(encoder: Encoder) -> dict[str, Any]:
    """Return the description of the encoder as plain data."""
    more: dict[str, Any] = {}
    if encoder.framework != _DEFAULT_FRAMEWORK:
        more["framework"] = encoder.framework
    if (graph := encoder.preprocessing) is not None:
        more["preprocessing"] = [graph.input_name, *graph.output_names]
    return more | {
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


def read_weights(folder: Folder) -> tuple[Array, ...] | None:
    """Return the weights that an earlier start saved, or None if there are none."""
    if not folder.exists(_DESCRIPTION):
        return None
    with np.load(io.BytesIO(_read_file(folder, _WEIGHTS)), allow_pickle=False) as arrays:
        return tuple(arrays[name] for name in sorted(arrays.files))


def read_kept_model(folder: Folder) -> KeptModel | None:
    """Return the model of a library that an earlier start kept, or None if there is none.

    Raises:
        InputError: it is damaged.
    """
    if not folder.exists(_MODEL):
        return None
    content = lists_to_tuples(json.loads(_read_file(folder, _MODEL)))
    return KeptModel(**content)


def load_encoder(folder: Folder, spec: EncoderSpec) -> Encoder | None:
    """Return the encoder that an earlier start saved, or None if its engine calls the model itself.

    Args:
        folder: the run folder.
        spec: the requested encoder, with the same options as when it was saved.

    Raises:
        InputError: a file is missing or damaged.
    """
    description = _read_description(folder)
    rescaling: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in description["rescaling"].items()
    }
    names = description.get("preprocessing")
    height, width, channels = description["image_shape"]
    encoder = Encoder(
        spec=replace(
            spec,
            model=spec.model_name,
            batch_size=description["batch_size"],
            kept=read_kept_model(folder),
        ),
        image_shape=(height, width, channels),
        outputs=tuple(Output(**output) for output in description["outputs"]),
        engine=description["engine"],
        architecture=description["architecture"],
        weights_digest=description["weights"],
        graph=None,
        input_name="",
        output_names=(),
        weights=read_weights(folder) or (),
        rescaling=Rescaling(**rescaling),
        framework=description.get("framework", _DEFAULT_FRAMEWORK),
        preprocessing=names and TensorFlowGraph(b"", names[0], tuple(names[1:])),
    )
    return restore_contents(folder, encoder) if runs_graph(encoder) else None


def strip_contents(encoder: Encoder) -> Encoder:
    """Return the encoder without its graphs and its weights."""
    preprocessing = encoder.preprocessing and replace(encoder.preprocessing, content=b"")
    return replace(encoder, graph=None, weights=(), preprocessing=preprocessing)


def count_bytes(encoder: Encoder) -> int:
    """Return the size of what the engine of an encoder loads: its graph, or its weights."""
    if runs_graph(encoder) and encoder.graph is not None:
        return len(encoder.graph)
    return sum(value.nbytes for value in encoder.weights)


def count_batch_bytes(encoder: Encoder) -> int:
    """Return the size of a batch of images, (N, H, W, C) float32."""
    return 4 * encoder.spec.batch_size * math.prod(encoder.image_shape)


def restore_contents(folder: Folder, encoder: Encoder) -> Encoder:
    """Return the encoder with what its engine needs: the saved graph, or the saved weights.

    Raises:
        InputError: a file is missing or damaged.
    """
    if not runs_graph(encoder):
        return replace(encoder, weights=read_weights(folder) or ())
    graph = _read_file(folder, _name_graph(encoder))
    if encoder.preprocessing is not None:
        content = _read_file(folder, _PREPROCESSING)
        encoder = replace(encoder, preprocessing=replace(encoder.preprocessing, content=content))
    description = _read_description(folder)
    return replace(
        encoder,
        graph=graph,
        input_name=description["input_name"],
        output_names=tuple(description["output_names"]),
    )
