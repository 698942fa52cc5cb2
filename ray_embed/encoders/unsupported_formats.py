# SPDX-License-Identifier: Apache-2.0
"""Recognize model files in formats that Keras cannot load, and suggest one that works.

Files are recognized by content, or by suffix if the content is inconclusive. This module does not
import TensorFlow, so that a wrong file is refused before anything starts.
"""

import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ray_embed.encoders.keras_hub_import import is_keras_hub_installed
from ray_embed.encoders.protobuf_fields import SIZED, VARINT, read_fields
from ray_embed.errors import InputError

_FIX_GIVE_ORIGINAL = (
    "give the model it was converted from: a .keras or .h5 file, or a SavedModel folder"
)
_FIX_LOAD_IN_CODE = (
    "load it in a function that returns a Keras model, and give --model module:callable"
)
_FIX_UNPACK = "unpack it and give the model inside"

# What the file is, and how to get a format that works.
_Format = tuple[str, str]

_CHECKPOINT_PART = re.compile(r"\.(index|meta|data-\d{5}-of-\d{5})$")
_PRETRAINED = re.compile(r"(tf_|pytorch_)?model.*\.(bin|safetensors|h5)")
_TFLITE: _Format = (
    "a TensorFlow Lite model, compiled for devices and without layers",
    _FIX_GIVE_ORIGINAL,
)
_PYTORCH: _Format = (
    "a PyTorch file: weights, or a pickled module, which runs code when it is read",
    "give the module with --model module:callable, for a function that returns it, and its state "
    "dict with --weights; or export the encoder with torch.export.save or torch.onnx.export, and "
    "give the .pt2 or the .onnx file",
)
_TORCHSCRIPT: _Format = (
    "a TorchScript archive, which PyTorch no longer develops",
    "give the module that it was made from, with --model module:callable; or export that module "
    "with torch.export.save or torch.onnx.export, and give the .pt2 or the .onnx file",
)
_SAFETENSORS: _Format = (
    "safetensors: weights, without the model",
    "give the model with --model module:callable, for a function that returns a PyTorch module, "
    "and this file with --weights; or load it there into a Keras model",
)
_GRAPH: _Format = (
    "a TensorFlow graph (a frozen GraphDef), without signatures",
    "make a SavedModel folder of it: in a tf.compat.v1.Session, tf.import_graph_def, then "
    "tf.compat.v1.saved_model.simple_save(session, folder, inputs={{'images': …}}, "
    "outputs={{'features': …}}); or give the model it was made from",
)
_META_GRAPH: _Format = (
    "the graph of a TensorFlow 1 checkpoint",
    "in a tf.compat.v1.Session, load it with tf.compat.v1.train.import_meta_graph and its restore, "
    "then save it with tf.compat.v1.saved_model.simple_save",
)
_PICKLE: _Format = ("a Python pickle, which runs code when it is read", _FIX_LOAD_IN_CODE)
_ARRAYS: _Format = ("NumPy arrays, not a model", _FIX_LOAD_IN_CODE)
_YAML: _Format = (
    "the YAML of a model, which Keras no longer reads",
    "write it with model.to_json() where it was made, and give model.json with --weights",
)
_TFJS_LAYERS: _Format = (
    "a TensorFlow.js layers model",
    "convert it: tensorflowjs_converter --input_format tfjs_layers_model --output_format keras "
    "{json} encoder.h5; or give the model it was converted from",
)
_TFJS_GRAPH: _Format = ("a TensorFlow.js graph model, without layers", _FIX_GIVE_ORIGINAL)
_HUGGING_FACE: _Format = (
    "a folder of Hugging Face Transformers",
    "load it in a function, as TFAutoModel.from_pretrained(folder) does, and give --model "
    "module:callable",
)
_KERAS_HUB: _Format = (
    "a KerasHub preset",
    "to load it, install KerasHub: pip install 'ray_embed[hub]'",
)
_CHECKPOINT: _Format = (
    "a TensorFlow checkpoint: weights, without the model",
    "give the model with --model (module:callable, or model.json), and --weights {prefix}",
)
_PART_OF_SAVED_MODEL: _Format = ("a part of a SavedModel", "give its folder: --model {folder}")
_TEXT_SAVED_MODEL: _Format = (
    "a SavedModel in text form (saved_model.pbtxt)",
    "save it again in binary form: tf.saved_model.save(tf.saved_model.load(folder), another)",
)

# Formats of other programs whose content cannot be recognized.
_BY_SUFFIX: dict[str, _Format] = {
    ".mlmodel": ("a Core ML model", _FIX_GIVE_ORIGINAL),
    ".mlpackage": ("a Core ML model", _FIX_GIVE_ORIGINAL),
    ".mlmodelc": ("a Core ML model", _FIX_GIVE_ORIGINAL),
    ".engine": ("a TensorRT engine", _FIX_GIVE_ORIGINAL),
    ".plan": ("a TensorRT engine", _FIX_GIVE_ORIGINAL),
    ".pkl": _PICKLE,
    ".pickle": _PICKLE,
    ".joblib": _PICKLE,
    ".pt": _PYTORCH,
    ".pth": _PYTORCH,
    ".ckpt": _CHECKPOINT,
}


def refuse_unsupported_format(path: Path) -> None:
    """Refuse a file, folder or checkpoint prefix in a format that Keras cannot load.

    Unknown contents are accepted here; loading them raises the error.

    Args:
        path: the value of ``--model``.

    Raises:
        InputError: the format is known and not supported. The message names it, and says how to
            get a format that works.
    """
    recognized = _recognize(path)
    if recognized is None:
        return
    what, fix = recognized
    prefix, json_file = _CHECKPOINT_PART.sub("", str(path)), path
    if path.name == "checkpoint" and path.is_file():
        prefix = str(path.parent)
    if path.is_dir():
        json_file = path / "model.json"
    folder = path.parent.parent if path.parent.name == "variables" else path.parent
    fix = fix.format(path=path, prefix=prefix, json=json_file, folder=folder)
    raise InputError(f"--model {path}: {what}; {fix}")


def _recognize(path: Path) -> _Format | None:
    if path.is_dir():
        return _recognize_folder(path)
    if not path.is_file():
        return _CHECKPOINT if Path(f"{path}.index").is_file() else None
    if _is_part_of_saved_model(path):
        return _PART_OF_SAVED_MODEL
    if path.suffix == ".meta" and Path(f"{path.with_suffix('')}.index").is_file():
        return _META_GRAPH
    if _CHECKPOINT_PART.search(path.name) and path.suffix != ".meta":
        return _CHECKPOINT
    with path.open("rb") as file:
        start = file.read(4096)
        recognized = _recognize_start(path, start)
        if recognized is None and not _is_keras_file(start):
            recognized = _recognize_protobuf(file)
    return recognized or (None if _is_keras_file(start) else _BY_SUFFIX.get(path.suffix.lower()))


def _is_part_of_saved_model(path: Path) -> bool:
    if path.name in ("keras_metadata.pb", "fingerprint.pb", "tfhub_module.pb"):
        return (path.parent / "saved_model.pb").is_file()
    in_variables = path.parent.name == "variables" and bool(_CHECKPOINT_PART.search(path.name))
    return in_variables and (path.parent.parent / "saved_model.pb").is_file()


def _is_keras_file(start: bytes) -> bool:
    """Return whether a file may be in one of Keras' own formats: HDF5 or a zip archive."""
    return start.startswith((b"\x89HDF\r\n\x1a\n", b"PK\x03\x04"))


def _recognize_start(path: Path, start: bytes) -> _Format | None:
    text = start.lstrip()
    if start[4:8] == b"TFL3":
        return _TFLITE
    if start.startswith(b"PK\x03\x04"):
        return _recognize_zip(path)
    # A pickle of protocol 2 whose first value is PyTorch's magic number.
    if start.startswith(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."):
        return _PYTORCH
    if re.match(rb"\x80[\x02-\x05]", start):
        return _PYTORCH if path.suffix.lower() in (".pt", ".pth") else _PICKLE
    if start.startswith(b"\x93NUMPY"):
        return _ARRAYS
    if start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ")) or start[257:262] == b"ustar":
        return "a packed archive", _FIX_UNPACK
    # A length of eight bytes, then a JSON object.
    if start[8:10] == b'{"' and re.search(rb'"(dtype|__metadata__)"', start):
        return _SAFETENSORS
    if text.startswith(b"{"):
        return _recognize_json(path)
    if re.match(rb"(<\?xml[^>]*>\s*)?<net[\s>]", text):
        return (
            "a model of OpenVINO",
            f"{_FIX_GIVE_ORIGINAL}; ray_embed converts it for OpenVINO itself",
        )
    if re.match(rb"node\s*\{", text):
        return _GRAPH
    if re.match(rb"model_checkpoint_path:", text):
        return _CHECKPOINT
    if path.suffix.lower() in (".yaml", ".yml") and re.search(rb"(?m)^class_name:", start):
        return _YAML
    return None


def _recognize_zip(path: Path) -> _Format | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        return None
    if any(name.endswith("/constants.pkl") for name in names):
        return _TORCHSCRIPT
    if any(name.endswith("/data.pkl") for name in names):
        return _PYTORCH
    if names and all(name.endswith(".npy") for name in names):
        return _ARRAYS
    inside = ("saved_model.pb", "model.json", ".keras", ".h5", ".index")
    if "config.json" not in names and any(name.endswith(inside) for name in names):
        return "a packed archive", _FIX_UNPACK
    return None


def _recognize_json(path: Path) -> _Format | None:
    content = read_json(path)
    if "modelTopology" not in content and "weightsManifest" not in content:
        return None
    topology = content.get("modelTopology") or {}
    graph = content.get("format") == "graph-model" or "node" in topology
    return _TFJS_GRAPH if graph else _TFJS_LAYERS


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, or an empty dict if the file has none."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _recognize_folder(path: Path) -> _Format | None:
    """Recognize a folder by its files; return None for a SavedModel and for unknown contents."""
    names = {entry.name for entry in path.iterdir()}
    if "saved_model.pb" in names:
        return None
    if "saved_model.pbtxt" in names:
        return _TEXT_SAVED_MODEL
    if path.name == "variables" and (path.parent / "saved_model.pb").is_file():
        return _PART_OF_SAVED_MODEL
    if "model.json" in names and (recognized := _recognize_json(path / "model.json")):
        return recognized
    if is_keras_hub_preset(path):
        return None if is_keras_hub_installed() else _KERAS_HUB
    if "config.json" in names and any(map(_PRETRAINED.fullmatch, names)):
        return _HUGGING_FACE
    if any(name.endswith(".index") for name in names):
        return _CHECKPOINT
    if models := sorted(_models_in(path)):
        paths = ", ".join(str(path / name) for name in models[:5])
        return "a folder that is no model itself", f"give one of the models in it: {paths}"
    return _BY_SUFFIX.get(path.suffix.lower())


def is_keras_hub_preset(path: Path) -> bool:
    """Return whether a folder is a preset of KerasHub: the description of a model, and weights."""
    if not path.is_dir() or not (path / "config.json").is_file():
        return False
    weights = (path / "model.weights.h5", path / "model.weights.json")
    return any(map(Path.is_file, weights)) and "registered_name" in read_json(path / "config.json")


def _models_in(folder: Path) -> Iterator[str]:
    for entry in folder.iterdir():
        is_model_file = entry.suffix.lower() in (".keras", ".h5", ".hdf5", ".onnx", ".pt2")
        if is_model_file or entry.name == "model.json" or (entry / "saved_model.pb").is_file():
            yield entry.name


# --- Protocol Buffers ----------------------------------------------------------------------------


def _recognize_protobuf(file: BinaryIO) -> _Format | None:
    """Recognize a TensorFlow graph by the fields of its outermost message."""
    fields, first = read_fields(file)
    if fields <= {(1, VARINT), (2, SIZED)} and len(fields) == 2:
        return (
            "a SavedModel under another name than saved_model.pb",
            "put it back into its folder, under that name, and give the folder",
        )
    graph = {(1, SIZED), (2, SIZED), (3, VARINT), (4, SIZED), (5, SIZED)}
    # A node begins with its name.
    if (1, SIZED) in fields and fields <= graph and first.startswith(b"\x0a"):
        return _GRAPH
    return None
