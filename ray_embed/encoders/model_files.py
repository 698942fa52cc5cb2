# SPDX-License-Identifier: Apache-2.0
"""Recognizes files that hold no model Keras could load, and says which form works instead.

A file is recognized by its content; only what has no content to go by, by its ending. Nothing here
imports TensorFlow, so that a wrong file is refused before anything starts.
"""

import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ray_embed.errors import InputError

_FROM = "give the model it was converted from: a .keras or .h5 file, or a SavedModel folder"
_IN_CODE = "load it in a function that returns a Keras model, and give --model module:callable"
_UNPACK = "unpack it and give the model inside"

# (what the file is, how to get a form that works)
_Form = tuple[str, str]

_CHECKPOINT_PART = re.compile(r"\.(index|meta|data-\d{5}-of-\d{5})$")
_PRETRAINED = re.compile(r"(tf_|pytorch_)?model.*\.(bin|safetensors|h5)")
_TFLITE: _Form = ("a TensorFlow Lite model, compiled for devices and without layers", _FROM)
_PYTORCH: _Form = (
    "a PyTorch file",
    "in PyTorch, export the encoder with torch.onnx.export, and make a SavedModel folder of it: "
    "onnx2tf -i encoder.onnx -o encoder -osd; or load its weights into a Keras model in a function "
    "of yours, and give --model module:callable",
)
_SAFETENSORS: _Form = (
    "safetensors: weights, without the model",
    "load them in a function that returns a Keras model, and give --model module:callable (for "
    "Transformers: TFAutoModel.from_pretrained(folder))",
)
_ONNX: _Form = (
    "an ONNX model",
    "make a SavedModel folder of it: onnx2tf -i {path} -o encoder -osd",
)
_GRAPH: _Form = (
    "a TensorFlow graph (a frozen GraphDef), without signatures",
    "make a SavedModel folder of it: in a tf.compat.v1.Session, tf.import_graph_def, then "
    "tf.compat.v1.saved_model.simple_save(session, folder, inputs={{'images': …}}, "
    "outputs={{'features': …}}); or give the model it was made from",
)
_META_GRAPH: _Form = (
    "the graph of a TensorFlow 1 checkpoint",
    "in a tf.compat.v1.Session, load it with tf.compat.v1.train.import_meta_graph and its restore, "
    "then save it with tf.compat.v1.saved_model.simple_save",
)
_PICKLE: _Form = ("a Python pickle, which runs code when it is read", _IN_CODE)
_ARRAYS: _Form = ("NumPy arrays, not a model", _IN_CODE)
_YAML: _Form = (
    "the YAML of a model, which Keras no longer reads",
    "write it with model.to_json() where it was made, and give model.json with --weights",
)
_TFJS_LAYERS: _Form = (
    "a TensorFlow.js layers model",
    "convert it: tensorflowjs_converter --input_format tfjs_layers_model --output_format keras "
    "{json} encoder.h5; or give the model it was converted from",
)
_TFJS_GRAPH: _Form = ("a TensorFlow.js graph model, without layers", _FROM)
_HUGGING_FACE: _Form = (
    "a folder of Hugging Face Transformers",
    "load it in a function, as TFAutoModel.from_pretrained(folder) does, and give --model "
    "module:callable",
)
_KERAS_HUB: _Form = (
    "a KerasHub preset",
    "load it in a function, as keras_hub.models.Backbone.from_preset(folder) does, and give "
    "--model module:callable",
)
_CHECKPOINT: _Form = (
    "a TensorFlow checkpoint: weights, without the model",
    "give the model with --model (module:callable, or model.json), and --weights {prefix}",
)
_PART_OF_SAVED_MODEL: _Form = ("a part of a SavedModel", "give its folder: --model {folder}")
_TEXT_SAVED_MODEL: _Form = (
    "a SavedModel in text form (saved_model.pbtxt)",
    "save it again in binary form: tf.saved_model.save(tf.saved_model.load(folder), another)",
)

# Forms of other programs, whose content says less than their ending.
_BY_ENDING: dict[str, _Form] = {
    ".mlmodel": ("a Core ML model", _FROM),
    ".mlpackage": ("a Core ML model", _FROM),
    ".mlmodelc": ("a Core ML model", _FROM),
    ".engine": ("a TensorRT engine", _FROM),
    ".plan": ("a TensorRT engine", _FROM),
    ".pkl": _PICKLE,
    ".pickle": _PICKLE,
    ".joblib": _PICKLE,
    ".pt": _PYTORCH,
    ".pth": _PYTORCH,
    ".ckpt": _CHECKPOINT,
}


def refuse_other_forms(path: Path) -> None:
    """Refuse a file, a folder, or the prefix of a checkpoint that is no model Keras could load.

    What may be one is left to be loaded, or to be refused by what loads it.

    Args:
        path: as given by `--model`.

    Raises:
        InputError: naming what it is, and the way to a form that works.
    """
    form = _form_of(path)
    if form is None:
        return
    what, way = form
    prefix, json_file = _CHECKPOINT_PART.sub("", str(path)), path
    if path.name == "checkpoint" and path.is_file():
        prefix = str(path.parent)
    if path.is_dir():
        json_file = path / "model.json"
    folder = path.parent.parent if path.parent.name == "variables" else path.parent
    way = way.format(path=path, prefix=prefix, json=json_file, folder=folder)
    raise InputError(f"--model {path}: {what}; {way}")


def _form_of(path: Path) -> _Form | None:
    if path.is_dir():
        return _folder_form(path)
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
        form = _form_by_start(path, start)
        if form is None and not _is_keras_file(start):
            form = _protobuf_form(file)
    return form or (None if _is_keras_file(start) else _BY_ENDING.get(path.suffix.lower()))


def _is_part_of_saved_model(path: Path) -> bool:
    if path.name in ("keras_metadata.pb", "fingerprint.pb", "tfhub_module.pb"):
        return (path.parent / "saved_model.pb").is_file()
    in_variables = path.parent.name == "variables" and bool(_CHECKPOINT_PART.search(path.name))
    return in_variables and (path.parent.parent / "saved_model.pb").is_file()


def _is_keras_file(start: bytes) -> bool:
    """Return whether a file may be of Keras' own formats: HDF5, or a zip."""
    return start.startswith((b"\x89HDF\r\n\x1a\n", b"PK\x03\x04"))


def _form_by_start(path: Path, start: bytes) -> _Form | None:
    text = start.lstrip()
    if start[4:8] == b"TFL3":
        return _TFLITE
    if start.startswith(b"PK\x03\x04"):
        return _zip_form(path)
    # A pickle of protocol 2 whose first value is PyTorch's magic number.
    if start.startswith(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."):
        return _PYTORCH
    if re.match(rb"\x80[\x02-\x05]", start):
        return _PYTORCH if path.suffix.lower() in (".pt", ".pth") else _PICKLE
    if start.startswith(b"\x93NUMPY"):
        return _ARRAYS
    if start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ")) or start[257:262] == b"ustar":
        return "a packed archive", _UNPACK
    # Eight bytes of length, then a JSON object.
    if start[8:10] == b'{"' and re.search(rb'"(dtype|__metadata__)"', start):
        return _SAFETENSORS
    if text.startswith(b"{"):
        return _json_form(path)
    if re.match(rb"(<\?xml[^>]*>\s*)?<net[\s>]", text):
        return "a model of OpenVINO", f"{_FROM}; ray_embed converts it for OpenVINO itself"
    if re.match(rb"node\s*\{", text):
        return _GRAPH
    if re.match(rb"model_checkpoint_path:", text):
        return _CHECKPOINT
    if path.suffix.lower() in (".yaml", ".yml") and re.search(rb"(?m)^class_name:", start):
        return _YAML
    return None


def _zip_form(path: Path) -> _Form | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        return None
    if any(name.endswith(("/data.pkl", "/constants.pkl")) for name in names):
        return _PYTORCH
    if names and all(name.endswith(".npy") for name in names):
        return _ARRAYS
    inside = ("saved_model.pb", "model.json", ".keras", ".h5", ".index")
    if "config.json" not in names and any(name.endswith(inside) for name in names):
        return "a packed archive", _UNPACK
    return None


def _json_form(path: Path) -> _Form | None:
    content = read_json(path)
    if "modelTopology" not in content and "weightsManifest" not in content:
        return None
    topology = content.get("modelTopology") or {}
    graph = content.get("format") == "graph-model" or "node" in topology
    return _TFJS_GRAPH if graph else _TFJS_LAYERS


def read_json(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file; empty where it holds none."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _folder_form(path: Path) -> _Form | None:
    """Recognize a folder by what is in it; None for a SavedModel, and where nothing is known."""
    names = {entry.name for entry in path.iterdir()}
    if "saved_model.pb" in names:
        return None
    if "saved_model.pbtxt" in names:
        return _TEXT_SAVED_MODEL
    if path.name == "variables" and (path.parent / "saved_model.pb").is_file():
        return _PART_OF_SAVED_MODEL
    if "model.json" in names and (form := _json_form(path / "model.json")):
        return form
    if "config.json" in names and any(map(_PRETRAINED.fullmatch, names)):
        keras_hub = "registered_name" in read_json(path / "config.json")
        return _KERAS_HUB if keras_hub else _HUGGING_FACE
    if any(name.endswith(".index") for name in names):
        return _CHECKPOINT
    if inside := sorted(_models_in(path)):
        shown = ", ".join(str(path / name) for name in inside[:5])
        return "a folder that is no model itself", f"give one of the models in it: {shown}"
    return _BY_ENDING.get(path.suffix.lower())


def _models_in(folder: Path) -> Iterator[str]:
    for entry in folder.iterdir():
        is_keras_file = entry.suffix.lower() in (".keras", ".h5", ".hdf5")
        if is_keras_file or entry.name == "model.json" or (entry / "saved_model.pb").is_file():
            yield entry.name


# --- Protocol Buffers ----------------------------------------------------------------------------

# What the fields of a message are: their numbers, of those that are varints and of those with a
# length (texts and messages).
_VARINT, _SIZED = 0, 2
_ENOUGH_FIELDS = 10_000


def _protobuf_form(file: BinaryIO) -> _Form | None:
    """Recognize an ONNX model or a TensorFlow graph by the fields of its outermost message."""
    file.seek(0)
    fields: set[tuple[int, int]] = set()
    first = b""
    for at, (number, kind, start) in enumerate(_fields(file)):
        if number == 0:
            return None
        if at == 0:
            first = start
        fields.add((number, kind))
        if at > _ENOUGH_FIELDS:
            break
    onnx = {(1, _VARINT), (5, _VARINT), *((n, _SIZED) for n in (2, 3, 4, 6, 7, 8, 14, 20, 25, 26))}
    if {(1, _VARINT), (7, _SIZED), (8, _SIZED)} <= fields <= onnx:
        return _ONNX
    if fields <= {(1, _VARINT), (2, _SIZED)} and len(fields) == 2:
        return (
            "a SavedModel under another name than saved_model.pb",
            "put it back into its folder, under that name, and give the folder",
        )
    graph = {(1, _SIZED), (2, _SIZED), (3, _VARINT), (4, _SIZED), (5, _SIZED)}
    # A node begins with its name.
    if (1, _SIZED) in fields and fields <= graph and first.startswith(b"\x0a"):
        return _GRAPH
    return None


def _fields(file: BinaryIO) -> Iterator[tuple[int, int, bytes]]:
    """Read each field's number, its wire type, and how its content begins; 0 where it is none."""
    size = file.seek(0, 2)
    file.seek(0)
    while file.tell() < size:
        tag = _varint(file)
        number, kind = tag >> 3, tag & 7
        start = b""
        if kind == _VARINT:
            _varint(file)
        elif kind == _SIZED:
            length = _varint(file)
            end = file.tell() + length
            start = file.read(min(length, 16))
            file.seek(end)
        else:
            number = 0
        if file.tell() > size:
            number = 0
        yield number, kind, start
        if number == 0:
            return


def _varint(file: BinaryIO) -> int:
    value = shift = 0
    while byte := file.read(1):
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80 or shift > 63:
            return value
        shift += 7
    # Cut off: no number that a field has.
    return 0
