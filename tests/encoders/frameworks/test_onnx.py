# SPDX-License-Identifier: Apache-2.0
"""ONNX files as encoders: the same features as onnxruntime's, and what is refused."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import tensorflow as tf
from onnx import TensorProto, helper
from support.encoders import build_alone, encode, noise, spec
from support.features import assert_features_equal
from support.onnx_files import (
    FIRST,
    MAPS,
    SIDES,
    VECTOR,
    call_onnxruntime,
    channels_first,
    conv_nodes,
    random_weights,
    save_onnx,
)

from ray_embed.encoders.build import build
from ray_embed.encoders.engines.openvino import is_openvino_installed
from ray_embed.encoders.layer_shapes import list_shapes
from ray_embed.encoders.spec import Encoder
from ray_embed.errors import InputError

ENGINES = [
    pytest.param(
        "openvino", marks=pytest.mark.skipif(not is_openvino_installed(), reason="no OpenVINO")
    ),
    "onnxruntime",
]
node = helper.make_node


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return save_onnx(tmp_path / "encoder.onnx")


def test_building_needs_no_tensorflow(path: Path) -> None:
    assert "tensorflow" not in build_alone(str(path))


def images(count: int = 4) -> np.ndarray:
    return noise(count, (*SIDES, 3))


def build_encoder(path: Path, **options: Any) -> Encoder:
    return build(spec(path, **options))


def features_of(path: Path, **options: Any) -> np.ndarray:
    (features,) = encode(build_encoder(path, **options), images())
    return features


def refuse(path: Path, **options: Any) -> str:
    with pytest.raises(InputError) as refused:
        build_encoder(path, **options)
    return str(refused.value)


# --- features ------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_the_output_is_that_of_onnxruntime(path: Path, engine: str) -> None:
    encoder = build_encoder(path, engine=engine)
    assert (encoder.engine, encoder.image_shape) == (engine, (*SIDES, 3))
    (expected,) = call_onnxruntime(path, channels_first(images()), VECTOR)
    assert_features_equal(encode(encoder, images())[0], expected)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("opset", [9, 17, 18])
@pytest.mark.parametrize("pool", ["gap", "gmp", "gem", "flatten"])
def test_maps_are_pooled_over_their_positions(
    tmp_path: Path, engine: str, opset: int, pool: str
) -> None:
    path = save_onnx(tmp_path / "m.onnx", opset=opset)
    encoder = build_encoder(path, layers=(MAPS, FIRST), pool=pool, engine=engine)
    found = encode(encoder, images())
    pooling = {
        "gap": lambda x: x.mean((2, 3)),
        "gmp": lambda x: x.max((2, 3)),
        "gem": lambda x: (np.maximum(x, 1e-6) ** 3).mean((2, 3)) ** (1 / 3),
        "flatten": lambda x: x.transpose(0, 2, 3, 1).reshape(len(x), -1),
    }[pool]
    maps = call_onnxruntime(path, channels_first(images()), MAPS, FIRST)
    for features, values in zip(found, maps, strict=True):
        assert_features_equal(features, pooling(values.astype(np.float64)))
    assert [output.column for output in encoder.outputs] == ["feature_maps", "feature_first"]
    assert "its channels are axis 1" in " ".join(encoder.notes)


def tokens(path: Path, order: list[int]) -> Path:
    """Write a network that cuts images into patches, whose tokens are mixed and then transposed."""
    random = np.random.default_rng(0)
    weights = {
        "patches": random.normal(0, 0.1, (12, 3, 4, 4)).astype("f4"),
        "shape": np.array([0, 12, -1]),
        "mix": random.normal(0, 0.3, (12, 10)).astype("f4"),
    }
    nodes = [
        node("Conv", ["images", "patches"], ["cut"], strides=[4, 4]),
        node("Reshape", ["cut", "shape"], ["sequence"]),
        node("Transpose", ["sequence"], ["turned"], perm=[0, 2, 1]),
        node("MatMul", ["turned", "mix"], ["mixed"]),
        node("Transpose", ["mixed"], ["tokens"], perm=order),
    ]
    return save_onnx(path, nodes, ["tokens"], weights)


@pytest.mark.parametrize("order", [[0, 1, 2], [0, 2, 1]])
@pytest.mark.parametrize("pool", ["gap", "cls"])
def test_tokens_are_pooled_wherever_their_channels_are(
    tmp_path: Path, order: list[int], pool: str
) -> None:
    path = tokens(tmp_path / "m.onnx", order)
    encoder = build_encoder(path, pool=pool)
    (values,) = call_onnxruntime(path, channels_first(images()), "tokens")
    values = values if order == [0, 1, 2] else values.transpose(0, 2, 1)
    assert values.shape == (4, 20, 10)
    expected = values.mean(1) if pool == "gap" else values[:, 0]
    assert_features_equal(encode(encoder, images())[0], expected)


def test_channels_that_cannot_be_followed_are_said_to_be_guessed(tmp_path: Path) -> None:
    """A sum over the channels, and then a new axis: what its last axis means is unknown."""
    nodes = [
        *conv_nodes()[:2],
        node("ReduceSum", [FIRST, "axes"], ["summed"], keepdims=0),
        node("Relu", ["summed"], ["rows"]),
    ]
    path = save_onnx(
        tmp_path / "m.onnx", nodes, ["rows"], random_weights() | {"axes": np.array([1])}
    )
    encoder = build_encoder(path)
    assert encoder.outputs[0].channel_axis == -1
    assert "its channel axis cannot be known; axis 2 was taken" in " ".join(encoder.notes)


def test_nothing_that_the_layers_do_not_need_is_kept(path: Path) -> None:
    encoder = build_encoder(path, layers=(FIRST,), engine="onnxruntime")
    graph = onnx.load_from_string(encoder.graph).graph
    assert {tensor.name for tensor in graph.initializer} & set(random_weights()) == {"w1", "b1"}


def test_of_several_outputs_the_first_is_taken(tmp_path: Path) -> None:
    path = save_onnx(tmp_path / "m.onnx", outputs=(MAPS, VECTOR))
    encoder = build_encoder(path)
    assert encoder.outputs[0].layer == MAPS
    assert "2 outputs (maps, vector): 'maps' is taken; others with --layer" in " ".join(
        encoder.notes
    )


def test_old_files_list_their_weights_as_inputs(path: Path) -> None:
    model = onnx.load(path)
    model.ir_version = 3
    model.graph.input.extend(
        helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in model.graph.initializer
    )
    (expected,) = call_onnxruntime(path, channels_first(images()), FIRST)
    onnx.save(model, path)
    assert_features_equal(features_of(path, layers=(FIRST,)), expected.mean((2, 3)))


def test_functions_of_a_model_have_layers(tmp_path: Path) -> None:
    made = helper.make_function(
        "mine", "Twice", ["x"], ["y"],
        [node("Add", ["x", "x"], ["inside"]), node("Relu", ["inside"], ["y"])],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    path = save_onnx(
        tmp_path / "m.onnx",
        [*conv_nodes()[:2], node("Twice", [FIRST], ["doubled"], domain="mine")],
        ["doubled"],
        domains=["mine"],
    )
    model = onnx.load(path)
    model.functions.append(made)
    onnx.save(model, path)
    (expected,) = call_onnxruntime(path, channels_first(images()), "doubled")
    assert_features_equal(features_of(path), expected.mean((2, 3)))


# --- weights in other files ----------------------------------------------------------------------


def test_weights_beside_the_model_are_the_same_encoder(path: Path, tmp_path: Path) -> None:
    beside = save_onnx(tmp_path / "other.onnx", external="weights.bin")
    inside, outside = build_encoder(path), build_encoder(beside)
    (tmp_path / "weights.bin").unlink()
    assert outside.weights_digest == inside.weights_digest
    assert np.array_equal(encode(outside, images())[0], encode(inside, images())[0])


def test_a_missing_file_of_weights_is_named(tmp_path: Path) -> None:
    path = save_onnx(tmp_path / "m.onnx", external="weights.bin")
    (tmp_path / "weights.bin").unlink()
    assert f"the file {tmp_path / 'weights.bin'}" in (text := refuse(path))
    assert "is missing" in text


def test_a_file_of_weights_that_is_cut_off(tmp_path: Path) -> None:
    path = save_onnx(tmp_path / "m.onnx", external="weights.bin")
    (tmp_path / "weights.bin").write_bytes(b"1234")
    assert "too short for 'w1'" in refuse(path)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "a/../../secret"])
def test_files_outside_of_the_folder_are_not_read(tmp_path: Path, name: str) -> None:
    path = save_onnx(tmp_path / "m.onnx", external="weights.bin")
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = name
    path.write_bytes(model.SerializeToString())
    assert f"keeps weights in {name!r}, which is not in its own folder" in refuse(path)


# --- identity ------------------------------------------------------------------------------------


def test_the_content_decides_which_encoder_it_is(path: Path, tmp_path: Path) -> None:
    first = build_encoder(path)
    renamed = tmp_path / "model.bin"
    renamed.write_bytes(path.read_bytes())
    model = onnx.load(path)
    model.producer_name, model.doc_string = "someone", "else"
    for number, each in enumerate(model.graph.node):
        each.name = f"another_{number}"
        for names in (each.input, each.output):
            names[:] = [name.replace("conv", "renamed") for name in names]
    onnx.save(model, tmp_path / "exported_again.onnx")
    for other in (renamed, tmp_path / "exported_again.onnx"):
        same = build_encoder(other)
        assert (same.architecture, same.weights_digest) == (
            first.architecture,
            first.weights_digest,
        )
    trained = build_encoder(save_onnx(tmp_path / "b.onnx", weights=random_weights(1)))
    assert trained.architecture == first.architecture
    assert trained.weights_digest != first.weights_digest
    nodes = conv_nodes()
    nodes[1] = node("Sigmoid", ["conv1"], [FIRST])
    changed = build_encoder(save_onnx(tmp_path / "c.onnx", nodes))
    assert changed.architecture != first.architecture


# --- the input -----------------------------------------------------------------------------------


def test_channels_last_are_recognized_by_what_follows(tmp_path: Path) -> None:
    nodes = [node("Transpose", ["images"], ["turned"], perm=[0, 3, 1, 2]), *conv_nodes("turned")]
    path = save_onnx(tmp_path / "m.onnx", nodes, shape=(None, None, None, None))
    encoder = build_encoder(path, image_size=SIDES)
    assert encoder.image_shape == (*SIDES, 3)
    (expected,) = call_onnxruntime(path, images(), VECTOR)
    assert_features_equal(encode(encoder, images())[0], expected)


def test_channels_come_from_the_first_convolution(tmp_path: Path) -> None:
    weights = random_weights(channels=1)
    path = save_onnx(tmp_path / "m.onnx", weights=weights, shape=(None, None, None, None))
    assert build_encoder(path, image_size=SIDES).image_shape == (*SIDES, 1)


def test_a_size_that_is_not_fixed_is_asked_for(tmp_path: Path) -> None:
    path = save_onnx(tmp_path / "m.onnx", shape=("N", 3, "height", "width"))
    assert "it has no fixed input size; give --image-size H,W" in refuse(path)
    assert build_encoder(path, image_size=(24, 28)).image_shape == (24, 28, 3)


def test_a_size_that_is_fixed_cannot_be_changed(path: Path) -> None:
    assert f"takes {SIDES[0]},{SIDES[1]} only" in refuse(path, image_size=(8, 8))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("size", [1, 3])
def test_the_batch_size_follows_the_model(tmp_path: Path, engine: str, size: int) -> None:
    path = save_onnx(tmp_path / "m.onnx", shape=(size, 3, *SIDES))
    encoder = build_encoder(path, engine=engine)
    assert encoder.spec.batch_size == size
    assert f"takes batches of {size} images only" in " ".join(encoder.notes)
    (expected,) = call_onnxruntime(path, channels_first(images(size)), VECTOR)
    assert_features_equal(encode(encoder, images(size))[0], expected)


@pytest.mark.parametrize("engine", ENGINES)
def test_integers_are_given_as_levels(tmp_path: Path, engine: str) -> None:
    nodes = [node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT), *conv_nodes("floats")]
    path = save_onnx(tmp_path / "m.onnx", nodes, dtype=TensorProto.UINT8)
    encoder = build_encoder(path, engine=engine)
    assert encoder.rescaling.takes_integers
    assert encoder.rescaling.expects_levels
    # Interpolation may leave the range.
    levels = (images() * 270 - 5).astype(np.float32)
    whole = np.clip(levels, 0, 255).astype(np.uint8)
    (expected,) = call_onnxruntime(path, channels_first(whole), VECTOR)
    assert_features_equal(encode(encoder, levels)[0], expected)


def test_half_precision_is_computed_as_onnxruntime_does(tmp_path: Path) -> None:
    weights = random_weights(dtype="float16")
    path = save_onnx(tmp_path / "m.onnx", weights=weights, dtype=TensorProto.FLOAT16)
    encoder = build_encoder(path)
    (expected,) = call_onnxruntime(path, channels_first(images()).astype(np.float16), VECTOR)
    assert_features_equal(encode(encoder, images())[0], expected.astype(np.float32))


def rescaling_nodes() -> list[Any]:
    return [
        node("Sub", ["images", "means"], ["centered"]),
        node("Div", ["centered", "deviations"], ["scaled"]),
        *conv_nodes("scaled"),
    ]


def test_rescaling_in_the_graph_is_recognized(tmp_path: Path) -> None:
    means = {"means": np.float32(127.5), "deviations": np.float32(127.5)}
    path = save_onnx(tmp_path / "m.onnx", rescaling_nodes(), weights=random_weights() | means)
    rescaling = build_encoder(path).rescaling
    assert rescaling.expects_levels
    assert rescaling.describe() == "Sub, Div: × 1/127.5, then -1"


def test_normalization_of_scaled_pixels_is_no_rescaling_of_levels(tmp_path: Path) -> None:
    means = {
        "means": np.array([0.485, 0.456, 0.406], "f4").reshape(1, 3, 1, 1),
        "deviations": np.array([0.229, 0.224, 0.225], "f4").reshape(1, 3, 1, 1),
    }
    path = save_onnx(tmp_path / "m.onnx", rescaling_nodes(), weights=random_weights() | means)
    rescaling = build_encoder(path).rescaling
    assert not rescaling.expects_levels
    assert len(rescaling.factors) == 3


def test_metadata_about_pixels(tmp_path: Path) -> None:
    levels = save_onnx(
        tmp_path / "a.onnx", metadata={"Image.NominalPixelRange": "NominalRange_0_255"}
    )
    assert build_encoder(levels).rescaling.expects_levels
    bgr = save_onnx(
        tmp_path / "b.onnx",
        metadata={"Image.BitmapPixelFormat": "Bgr8", "mean": "[0.5]", "std": "[0.25]"},
    )
    encoder = build_encoder(bgr)
    assert not encoder.rescaling.expects_levels
    assert "--channel-order bgr, --mean and --std for [0.5] and [0.25]" in encoder.advice


# --- preprocessing -------------------------------------------------------------------------------


def invert(batch: Any) -> Any:
    return 1 - batch / 255


def invert_in_numpy(batch: Any) -> Any:
    return tf.numpy_function(lambda x: 1 - x / np.float32(255), [batch], tf.float32)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("by_name", [False, True])
def test_preprocessing_comes_before_the_graph(path: Path, engine: str, by_name: bool) -> None:
    function = "keras.applications.xception:preprocess_input" if by_name else invert
    encoder = build_encoder(path, preprocess=function, engine=engine)
    assert encoder.preprocessing is not None
    levels = images() * 255
    prepared = levels / 127.5 - 1 if by_name else invert(levels)
    (expected,) = call_onnxruntime(path, channels_first(prepared.astype(np.float32)), VECTOR)
    assert_features_equal(encode(encoder, levels)[0], expected)
    assert encoder.weights_digest != build_encoder(path).weights_digest


def test_preprocessing_that_has_no_graph_is_called_by_name(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "my_numpy.py").write_text(
        "import numpy as np, tensorflow as tf\n"
        "def invert(batch):\n"
        "    turn = lambda x: (1 - x / 255).astype('f4')\n"
        "    return tf.numpy_function(turn, [batch], tf.float32)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    encoder = build_encoder(path, preprocess="my_numpy:invert")
    assert encoder.preprocessing is None
    assert "each actor calls it" in encoder.warnings[0]
    levels = images() * 255
    (expected,) = call_onnxruntime(path, channels_first(1 - levels / 255), VECTOR)
    assert_features_equal(encode(encoder, levels)[0], expected)
    assert "give it as 'module:callable'" in refuse(path, preprocess=invert_in_numpy)


# --- engines -------------------------------------------------------------------------------------


def test_engines_of_other_frameworks_are_refused(path: Path) -> None:
    text = refuse(path, engine="tensorflow")
    assert "--engine tensorflow: it does not run" in text
    assert "auto, openvino, onnxruntime" in text


def test_onnxruntime_runs_no_keras_model() -> None:
    model = tf.keras.Sequential([tf.keras.Input((8, 8, 3)), tf.keras.layers.Conv2D(2, 3)])
    with pytest.raises(InputError, match="--engine onnxruntime: it does not run"):
        build(spec(model, engine="onnxruntime"))


@pytest.mark.skipif(not is_openvino_installed(), reason="no OpenVINO")
def test_operators_that_openvino_lacks_are_named(tmp_path: Path) -> None:
    nodes = [*conv_nodes()[:2], node("QuickGelu", [FIRST], ["y"], domain="com.microsoft")]
    path = save_onnx(tmp_path / "m.onnx", nodes, ["y"], domains=["com.microsoft"])
    encoder = build_encoder(path)
    if encoder.engine != "openvino":
        assert encoder.engine == "onnxruntime"
        assert "QuickGelu" in encoder.warnings[0]


@pytest.mark.skipif(not is_openvino_installed(), reason="no OpenVINO")
def test_bfloat16_is_for_openvino(path: Path) -> None:
    lowered = build_encoder(path, precision="bfloat16")
    assert lowered.engine == "openvino"
    exact, found = features_of(path), encode(lowered, images())[0]
    difference = np.abs(found - exact).max()
    assert difference <= 0.05 * np.abs(exact).max()
    # OpenVINO computes in float32 on processors without bfloat16.
    core = pytest.importorskip("openvino").Core()
    lowers = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    assert (difference > 0) == lowers
    assert "--precision bfloat16: onnxruntime computes" in refuse(
        path, precision="bfloat16", engine="onnxruntime"
    )


def pretend_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = tf.config.list_physical_devices
    monkeypatch.setattr(
        tf.config,
        "list_physical_devices",
        lambda kind=None: ["GPU 0"] if kind == "GPU" else found(kind),
    )


def test_without_cuda_the_cpu_is_used_and_said(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch)
    encoder = build_encoder(path)
    assert encoder.engine == build_encoder(path).engine
    assert "runs on the CPU" in " ".join(encoder.notes)
    assert "onnxruntime-gpu" in " ".join(encoder.notes)


def test_with_cuda_onnxruntime_computes_on_the_gpu(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_gpu(monkeypatch)
    cuda = "CUDAExecutionProvider"
    opened, real = [], onnxruntime.InferenceSession

    def record(model: bytes, options: Any, providers: list[Any]) -> Any:
        opened.append(providers)
        return real(model, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [cuda])
    monkeypatch.setattr(onnxruntime, "InferenceSession", record)
    encoder = build_encoder(path)
    assert encoder.engine == "onnxruntime"
    assert "CPU" not in " ".join(encoder.notes)
    # The plain call is one on the CPU.
    assert opened[0] == ["CPUExecutionProvider"]
    assert opened[-1][0] == (cuda, {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"})


# --- layers --------------------------------------------------------------------------------------


def test_layers_are_listed_without_the_steps_to_them(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models, layers = list_shapes(spec(path))
    assert models == {}
    assert layers == {
        FIRST: (None, 6, 8, 10),
        MAPS: (None, 8, 8, 10),
        "pooled": (None, 8, 1, 1),
        VECTOR: (None, 8),
    }
    assert "2 tensors are not listed" in capsys.readouterr().err
    # They are layers all the same.
    assert build_encoder(path, layers=("conv1",)).outputs[0].dimension == 6


def test_gates_and_normalization_in_parts_are_listed_once(tmp_path: Path) -> None:
    """As exporters write them: x · sigmoid(x), and a normalization of many small operators."""
    nodes = [
        *conv_nodes()[:2],
        node("Sigmoid", [FIRST], ["gate"]),
        node("Mul", [FIRST, "gate"], ["gated"]),
        node("Flatten", ["gated"], ["rows"]),
        node("MatMul", ["rows", "w3"], ["product"]),
        node("Add", ["product", "b3"], ["dense"]),
        node("ReduceMean", ["dense"], ["mean"], axes=[1]),
        node("Sub", ["dense", "mean"], ["centered"]),
        node("Mul", ["centered", "two"], ["doubled"]),
        node("Mul", ["doubled", "b3"], ["scaled"]),
        node("Add", ["scaled", "b3"], ["normalized"]),
        node("Relu", ["normalized"], ["y"]),
    ]
    weights = random_weights() | {
        "w3": np.ones((6 * 8 * 10, 5), "f4"),
        "b3": np.arange(5, dtype="f4"),
        "two": np.float32(2),
    }
    path = save_onnx(tmp_path / "m.onnx", nodes, ["y"], weights)
    assert list(list_shapes(spec(path))[1]) == [FIRST, "gated", "rows", "dense", "y"]


def test_shapes_that_depend_on_values_are_those_of_a_call(tmp_path: Path) -> None:
    """A shape that is computed through floats, which ONNX's own inference does not follow."""
    nodes = [
        *conv_nodes(),
        node("Shape", [VECTOR], ["sizes"]),
        node("Cast", ["sizes"], ["floats"], to=TensorProto.FLOAT),
        node("Sqrt", ["floats"], ["roots"]),
        node("Mul", ["roots", "roots"], ["squares"]),
        node("Add", ["squares", "half"], ["rounded"]),
        node("Cast", ["rounded"], ["shape"], to=TensorProto.INT64),
        node("Reshape", [VECTOR, "shape"], ["shaped"]),
        node("MatMul", ["shaped", "w3"], ["y"]),
    ]
    weights = random_weights() | {"w3": np.ones((8, 5), "f4"), "half": np.float32(0.5)}
    path = save_onnx(tmp_path / "m.onnx", nodes, ["y", "shaped"], weights)
    layers = list_shapes(spec(path))[1]
    assert (layers["y"], layers["shaped"]) == ((None, 5), (None, 8))


def test_a_layer_that_does_not_exist(path: Path) -> None:
    assert "--layer mapz: the model has no such layer; the nearest are maps" in refuse(
        path, layers=("mapz",)
    )


def test_a_layer_that_holds_no_features(tmp_path: Path) -> None:
    nodes = [*conv_nodes(), node("Shape", [MAPS], ["sizes"])]
    path = save_onnx(tmp_path / "m.onnx", nodes)
    assert "--layer sizes: it gives int64 (4,)" in refuse(path, layers=("sizes",))


# --- refused -------------------------------------------------------------------------------------


def test_a_file_that_is_no_onnx(tmp_path: Path) -> None:
    path = tmp_path / "encoder.onnx"
    path.write_bytes(np.random.default_rng(0).bytes(5000))
    assert f"--model {path}: it is no ONNX model" in refuse(path)


def test_a_file_that_was_cut_off(path: Path) -> None:
    content = path.read_bytes()
    for length in range(0, len(content), 97):
        path.write_bytes(content[:length])
        assert f"--model {path}: it is no ONNX model, or it is damaged" in refuse(path)


def test_custom_operators_are_named(tmp_path: Path) -> None:
    nodes = [*conv_nodes()[:2], node("Twist", [FIRST], ["y"], domain="org.example")]
    path = save_onnx(tmp_path / "m.onnx", nodes, ["y"], domains=["org.example"])
    assert "operators that onnxruntime lacks: Twist of the domain org.example" in refuse(path)


def test_operators_that_onnx_does_not_have(tmp_path: Path) -> None:
    path = save_onnx(tmp_path / "m.onnx", [node("Twist", ["images"], ["y"])], ["y"])
    assert "onnxruntime cannot load it" in (text := refuse(path))
    assert "Twist" in text


def test_operators_that_are_too_old(tmp_path: Path) -> None:
    assert "uses version 6 of ONNX's operators" in refuse(save_onnx(tmp_path / "m.onnx", opset=6))


def test_several_inputs_are_named(tmp_path: Path) -> None:
    mask = helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["N", 1, 8, 10])
    nodes = [*conv_nodes()[:2], node("Mul", [FIRST, "mask"], ["y"])]
    path = save_onnx(tmp_path / "m.onnx", nodes, ["y"], inputs=[mask])
    assert "it has 2 inputs (images (?, 3, 16, 20), mask (?, 1, 8, 10))" in refuse(path)


def test_inputs_that_are_no_images(tmp_path: Path) -> None:
    vectors = save_onnx(
        tmp_path / "a.onnx", [node("Relu", ["images"], ["y"])], ["y"], {}, shape=("N", 7)
    )
    assert "its input has the shape (None, 7)" in refuse(vectors)
    texts = save_onnx(
        tmp_path / "b.onnx", [node("Identity", ["images"], ["y"])], ["y"], {},
        dtype=TensorProto.STRING,
    )  # fmt: skip
    assert "its input images takes string" in refuse(texts)


@pytest.mark.parametrize(
    ("option", "value", "why"),
    [
        ("weights", "a.h5", "--weights a.h5: --model"),
        ("weights", "random", "does not say how its weights were initialized"),
        ("submodel", "inner", "--submodel inner: --model"),
        ("signature", "serving_default", "--signature: --model"),
        ("tags", ("serve",), "--tags: --model"),
        ("model_kwargs", {"a": 1}, "--model-kwargs: --model"),
    ],
)
def test_options_for_other_models_are_refused(
    path: Path, option: str, value: Any, why: str
) -> None:
    assert why in (text := refuse(path, **{option: value}))
    assert "is an ONNX model" in text


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_is_named(
    path: Path, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else found(name)
    )
    assert f"need the package {package}; pip install 'ray_embed[onnx]'" in refuse(path)


def test_features_that_change_from_call_to_call(tmp_path: Path) -> None:
    nodes = [
        *conv_nodes(),
        node("RandomNormalLike", [VECTOR], ["noise"]),
        node("Add", [VECTOR, "noise"], ["sampled"]),
    ]
    path = save_onnx(tmp_path / "m.onnx", nodes, ["sampled"])
    text = refuse(path)
    assert "two calls on the same images give different features" in text
    assert f"{VECTOR}, pooled, {MAPS}, {FIRST}" in text


def test_images_that_change_each_other(tmp_path: Path) -> None:
    nodes = [
        *conv_nodes(),
        node("ReduceMean", [VECTOR], ["mean"], axes=[0], keepdims=1),
        node("Sub", [VECTOR, "mean"], ["centered"]),
    ]
    path = save_onnx(tmp_path / "m.onnx", nodes, ["centered"])
    assert "change with the other images of its batch" in refuse(path)


def test_a_layer_without_one_row_per_image(tmp_path: Path) -> None:
    nodes = [*conv_nodes(), node("Transpose", [VECTOR], ["turned"], perm=[1, 0])]
    path = save_onnx(tmp_path / "m.onnx", nodes)
    text = refuse(path, layers=("turned",))
    assert "--layer turned: its batch is axis 1, not axis 0" in text
    assert f"take another layer with --layer: {VECTOR}" in text
