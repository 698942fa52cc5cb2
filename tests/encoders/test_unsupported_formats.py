# SPDX-License-Identifier: Apache-2.0
"""Files of other frameworks and forms, each refused by name, without TensorFlow."""

import io
import json
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from ray_embed.config import RunConfig, make_config
from ray_embed.encoders import unsupported_formats
from ray_embed.encoders.unsupported_formats import refuse_unsupported_format
from ray_embed.errors import InputError
from ray_embed.extraction.prepare import check_model


def refused(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        refuse_unsupported_format(path)
    message = str(caught.value)
    assert message.startswith(f"--model {path}: ")
    return message


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def sized(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def zipped(**contents: bytes) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return sink.getvalue()


def arrays() -> bytes:
    sink = io.BytesIO()
    np.savez(sink, a=np.zeros(3))
    return sink.getvalue()


def packed() -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("saved_model.pb"))
    return sink.getvalue()


def safetensors() -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(4)


# As PyTorch and ONNX write them: ir_version, producer, graph, opset.
ONNX = number(1, 8) + sized(2, b"pytorch") + sized(7, b"\x0a\x00" * 300) + sized(8, number(2, 17))
NODE = sized(1, sized(1, b"images") + sized(2, b"Placeholder"))
GRAPH = NODE * 5 + sized(4, number(1, 1087))
TORCH = {"archive/data.pkl": b"", "archive/version": b"3"}
TORCHSCRIPT = TORCH | {"archive/constants.pkl": b"", "archive/code/__torch__.py": b""}
OLD_TORCH = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + b"\x80\x02M\xe9\x03."

FILES = {
    "TensorFlow Lite": (b"\x1c\0\0\0TFL3" + bytes(100), [".keras", "SavedModel"]),
    "frozen GraphDef": (GRAPH, ["simple_save"]),
    "PyTorch": (zipped(**TORCH), ["torch.onnx.export", ".onnx file", "module:callable"]),
    "TorchScript": (zipped(**TORCHSCRIPT), ["torch.export.save", "module:callable"]),
    "PyTorch ": (OLD_TORCH, ["torch.onnx.export"]),
    "safetensors": (safetensors(), ["module:callable"]),
    "TensorFlow.js layers": (
        json.dumps({"format": "layers-model", "modelTopology": {}, "weightsManifest": []}).encode(),
        ["tensorflowjs_converter"],
    ),
    "TensorFlow.js graph": (
        json.dumps({"format": "graph-model", "modelTopology": {"node": []}}).encode(),
        ["SavedModel"],
    ),
    "NumPy": (arrays(), ["module:callable"]),
    "pickle": (pickle.dumps({"a": 1}), ["runs code", "module:callable"]),
    "archive": (packed(), ["unpack"]),
    "archive ": (zipped(**{"m/saved_model.pb": b""}), ["unpack"]),
    "OpenVINO": (b'<?xml version="1.0"?>\n<net name="m" version="11">', ["ray_embed converts"]),
    "another name": (number(1, 1) + sized(2, NODE), ["saved_model.pb"]),
    "frozen GraphDef ": (b'node {\n  name: "x"\n', ["simple_save"]),
    "checkpoint": (b'model_checkpoint_path: "m-7"\n', ["--weights"]),
}


@pytest.mark.parametrize("ending", ["", ".bin", ".keras"])
@pytest.mark.parametrize("kind", FILES)
def test_file_is_named_by_its_content(tmp_path: Path, kind: str, ending: str) -> None:
    content, parts = FILES[kind]
    path = tmp_path / f"encoder{ending}"
    path.write_bytes(content)
    message = refused(path)
    for part in (kind.strip(), *parts):
        assert part in message


@pytest.mark.parametrize(
    ("ending", "kind"),
    [(".pt", "PyTorch"), (".pth", "PyTorch"), (".mlmodel", "Core ML"), (".engine", "TensorRT")],
)
def test_file_without_known_content_is_named_by_its_ending(
    tmp_path: Path, ending: str, kind: str
) -> None:
    path = tmp_path / f"encoder{ending}"
    path.write_bytes(b"\x01\x02\x03 something")
    assert kind in refused(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a model",
        b"\x89HDF\r\n\x1a\n" + bytes(100),
        zipped(**{"config.json": b"", "metadata.json": b"", "model.weights.h5": b""}),
        b'{"class_name": "Functional", "config": {}}',
        b"PK\x03\x04 cut off",
        varint(7 << 3 | 2) + varint(1 << 40),
        bytes([0x80] * 50),
    ],
)
def test_what_may_be_a_model_is_left_to_be_loaded(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "encoder"
    path.write_bytes(content)
    refuse_unsupported_format(path)
    refuse_unsupported_format(tmp_path / "none")


def test_each_cut_of_a_file_is_answered(tmp_path: Path) -> None:
    """A download that was cut off is either named or left to what loads it."""
    path = tmp_path / "encoder"
    for content in (ONNX, GRAPH, zipped(**TORCH), safetensors()):
        for length in range(0, len(content), 7):
            path.write_bytes(content[:length])
            try:
                refuse_unsupported_format(path)
            except InputError:
                continue


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("w", "w/ckpt"),
        ("w/ckpt", "w/ckpt"),
        ("w/ckpt.index", "w/ckpt"),
        ("w/ckpt.data-00000-of-00001", "w/ckpt"),
        ("w/checkpoint", "w"),
    ],
)
def test_checkpoint_given_as_model(tmp_path: Path, name: str, weights: str) -> None:
    (tmp_path / "w").mkdir()
    for file in ("ckpt.index", "ckpt.data-00000-of-00001"):
        (tmp_path / "w" / file).write_bytes(b"\0\1\2")
    (tmp_path / "w" / "checkpoint").write_text('model_checkpoint_path: "ckpt"')
    message = refused(tmp_path / name)
    assert "a TensorFlow checkpoint" in message
    expected = tmp_path / ("w" if name == "w" else weights)
    assert message.endswith(f"--weights {expected}")
    # Also before anything starts, where a prefix is no file that is there.
    with pytest.raises(InputError, match="a TensorFlow checkpoint"):
        check_model(make_config({"sources": {"a": "x"}, "model": str(tmp_path / name)}))


def test_graph_of_a_checkpoint_of_tensorflow_1(tmp_path: Path) -> None:
    for ending in ("index", "meta"):
        (tmp_path / f"model.ckpt-5.{ending}").write_bytes(b"\x0a\x01x")
    assert "import_meta_graph" in refused(tmp_path / "model.ckpt-5.meta")


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (["config.json", "model.safetensors"], ["Transformers", "from_pretrained"]),
        (["config.json", "pytorch_model.bin"], ["Transformers"]),
        (["config.json", "tf_model.h5"], ["Transformers"]),
        (["encoder.keras", "log.txt"], ["encoder.keras"]),
        (["a.h5", "b.h5"], ["a.h5", "b.h5"]),
        (["1/saved_model.pb", "2/saved_model.pb"], ["/1", "/2"]),
        (["saved_model.pbtxt"], ["text form"]),
    ],
)
def test_folder_that_is_no_model(tmp_path: Path, names: list[str], parts: list[str]) -> None:
    for name in names:
        (tmp_path / "m" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "m" / name).write_text("{}")
    message = refused(tmp_path / "m")
    for part in parts:
        assert part in message


@pytest.mark.parametrize("is_installed", [True, False])
def test_folder_of_keras_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_installed: bool
) -> None:
    monkeypatch.setattr(unsupported_formats, "is_keras_hub_installed", lambda: is_installed)
    (tmp_path / "config.json").write_text('{"registered_name": "keras_hub>Backbone"}')
    (tmp_path / "model.weights.h5").touch()
    if is_installed:
        refuse_unsupported_format(tmp_path)
    else:
        assert "ray_embed[hub]" in refused(tmp_path)


def test_folder_of_tensorflow_js(tmp_path: Path) -> None:
    (tmp_path / "js").mkdir()
    (tmp_path / "js" / "model.json").write_bytes(FILES["TensorFlow.js layers"][0])
    assert str(tmp_path / "js" / "model.json") in refused(tmp_path / "js")


@pytest.mark.parametrize(
    "name",
    ["variables", "variables/variables.index", "keras_metadata.pb", "fingerprint.pb"],
)
def test_part_of_a_saved_model_names_its_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "m" / "variables").mkdir(parents=True)
    for file in ("saved_model.pb", "keras_metadata.pb", "fingerprint.pb"):
        (tmp_path / "m" / file).write_bytes(b"\x08\x01")
    (tmp_path / "m" / "variables" / "variables.index").touch()
    assert refused(tmp_path / "m" / name).endswith(f"--model {tmp_path / 'm'}")


@pytest.mark.parametrize(
    ("given", "folder"),
    [
        ("a/m/saved_model.pb", "a/m"),
        ("saved_model.pb", "."),
        ("s3://b/m/saved_model.pb", "s3://b/m"),
    ],
)
def test_saved_model_pb_means_its_folder(given: str, folder: str) -> None:
    assert RunConfig(sources={"a": "x"}, model=given).model == folder


@pytest.mark.parametrize(
    ("given", "tags"),
    [("", ()), ("serve", ("serve",)), ("train, gpu", ("gpu", "train")), (["serve"], ("serve",))],
)
def test_tags_are_a_set(given: str | list[str], tags: tuple[str, ...]) -> None:
    assert RunConfig(sources={"a": "x"}, model="m", tags=given).tags == tags


def test_json_of_a_model_needs_weights(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    path.write_text('{"class_name": "Functional", "config": {}}')
    options = {"sources": {"a": "x"}, "model": str(path)}
    with pytest.raises(InputError, match=r"without their weights.*--weights"):
        check_model(make_config(options))
    check_model(make_config(options | {"weights": "w.weights.h5"}))
