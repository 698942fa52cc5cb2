# SPDX-License-Identifier: Apache-2.0
"""SavedModels of several graphs and signatures, models as JSON, and files of real converters."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from support.command import Command
from support.encoders import (
    call_model,
    compute_features,
    encode,
    gap,
    my_encoders,
    my_layers,
    noise,
    pixels,
    spec,
)
from support.pictures import make_folder

import ray_embed as package
from ray_embed.encoders.build import build
from ray_embed.encoders.layer_shapes import list_layer_shapes
from ray_embed.errors import InputError

LIBRARIES = my_encoders.LIBRARIES
IMAGES = tf.TensorSpec((None, 16, 16, 3), tf.float32)


def refused(model: Any, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        build(spec(model, **options))
    message = str(caught.value)
    assert "Traceback" not in message
    return message


# --- SavedModels of several graphs and signatures ------------------------------------------------

KERNEL = noise(3, (3, 3, 5)) - 0.5


@pytest.fixture(scope="module")
def hub_module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A module as TensorFlow 1 Hub keeps it: a graph for inference without tags, one to train."""
    folder = tmp_path_factory.mktemp("hub") / "module"
    v1 = tf.compat.v1
    builder = v1.saved_model.Builder(str(folder))
    for tags in ([], ["train"]):
        with v1.Session(graph=tf.Graph()) as session:
            images = v1.placeholder(tf.float32, [None, 16, 16, 3])
            kernel = v1.get_variable("kernel", initializer=KERNEL)
            maps = tf.nn.relu(tf.nn.conv2d(images, kernel, 1, "VALID"))
            maps = maps * tf.random.uniform(tf.shape(maps)) if tags else maps
            vector = tf.reduce_mean(maps, (1, 2))
            logits = tf.reduce_sum(vector, 1, keepdims=True)
            signatures = {
                name: v1.saved_model.predict_signature_def({"images": images}, outputs)
                for name, outputs in (
                    ("default", {"default": logits}),
                    ("image_feature_vector", {"default": vector, "block1": maps}),
                )
            }
            session.run(v1.global_variables_initializer())
            if tags:
                builder.add_meta_graph(tags, signatures)
            else:
                builder.add_meta_graph_and_variables(session, tags, signatures)
    builder.save()
    return folder


def hub_maps(images: np.ndarray) -> np.ndarray:
    return tf.nn.relu(tf.nn.conv2d(images, KERNEL, 1, "VALID")).numpy()


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())


def test_hub_module_takes_what_fits_and_says_so(hub_module: Path) -> None:
    encoder = build(spec(hub_module))
    assert_close(encode(encoder, noise())[0], gap(hub_maps(noise())))
    assert encoder.warnings == ()
    said = "\n".join(encoder.notes)
    assert "the tags {} of {}, {train}" in said
    assert "the signature image_feature_vector of image_feature_vector, default" in said
    assert "--tags, --signature" in said
    assert "2 outputs: 'default' is taken" in said


def test_hub_module_by_signature_tags_and_layer(hub_module: Path) -> None:
    encoder = build(spec(hub_module, signature="default", tags=()))
    expected = gap(hub_maps(noise())).sum(1, keepdims=True)
    assert_close(encode(encoder, noise())[0], expected)
    assert encoder.notes == ()
    found = compute_features(hub_module, noise(), layers=("block1",))
    assert_close(found, gap(hub_maps(noise())))
    # The graph for training drops some at random.
    assert "two calls" in refused(hub_module, tags=("train",))


def test_layers_of_a_signature_say_which_was_taken(
    hub_module: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert set(list_layer_shapes(spec(hub_module))) == {"default", "block1"}
    assert "image_feature_vector" in capsys.readouterr().err


def test_unknown_tags_and_signatures_are_named(hub_module: Path) -> None:
    message = refused(hub_module, tags=("serve",))
    assert "--tags 'serve'" in message
    assert "{}, {train}" in message
    message = refused(hub_module, signature="features")
    assert "--signature features" in message
    assert "image_feature_vector, default" in message


def test_signature_of_something_else_than_a_saved_model(tmp_path: Path) -> None:
    my_encoders.functional().save(tmp_path / "m.keras")
    assert "--signature: it is for SavedModel" in refused(tmp_path / "m.keras", signature="x")
    assert "--tags: it is for SavedModel" in refused(tmp_path / "m.keras", tags=())
    message = refused("my_encoders:functional", signature="x")
    assert "--signature: it is for SavedModel" in message


class Several(tf.Module):
    """What has a signature for texts, one for pairs, and one for images."""

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string)])
    def texts(self, text):
        return {"length": tf.cast(tf.strings.length(text), tf.float32)[:, None]}

    @tf.function(input_signature=[IMAGES, IMAGES])
    def pairs(self, left, right):
        return {"difference": left - right}

    @tf.function(input_signature=[IMAGES])
    def images(self, images):
        return {"maps": 2 * images}

    @tf.function(input_signature=[tf.TensorSpec((None, 4))])
    def vectors(self, vectors):
        return {"code": vectors}


def test_signature_of_one_image_input_is_found(tmp_path: Path) -> None:
    module = Several()
    signatures = {name: getattr(module, name) for name in ("texts", "images", "vectors")}
    signatures["serving_default"] = module.pairs
    tf.saved_model.save(module, str(tmp_path / "m"), signatures=signatures)
    encoder = build(spec(tmp_path / "m"))
    assert_close(encode(encoder, noise())[0], gap(2 * noise()))
    assert "the signature images of" in encoder.notes[0]
    assert "--tags" not in encoder.notes[0]
    assert "shape (None, 4)" in refused(tmp_path / "m", signature="vectors")
    assert "several inputs" in refused(tmp_path / "m", signature="serving_default")
    assert "string" in refused(tmp_path / "m", signature="texts")


def test_signature_of_a_saved_model_of_keras_2(tmp_path: Path) -> None:
    """It has layers, too, and is called by its signature where that is asked for."""
    model = my_encoders.functional("tf_keras")
    model.save(tmp_path / "m", save_format="tf")
    encoder = build(spec(tmp_path / "m", signature="serving_default"))
    assert_close(encode(encoder, noise())[0], gap(call_model(model, noise())))
    assert encoder.notes == ()
    assert build(spec(tmp_path / "m")).notes == ()


# --- models as JSON ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["functional", "sequential"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_json_and_weights(tmp_path: Path, library: str, kind: str) -> None:
    model = getattr(my_encoders, kind)(library, seed=6)
    model.compile("adam", "mse")
    (tmp_path / "model.json").write_text(model.to_json(indent=1))
    model.save_weights(tmp_path / "w.weights.h5")
    found = compute_features(
        tmp_path / "model.json", noise(), weights=str(tmp_path / "w.weights.h5")
    )
    expected = call_model(model, noise())
    assert_close(found, gap(expected) if expected.ndim > 2 else expected)
    assert list_layer_shapes(spec(tmp_path / "model.json"))
    assert "without their weights" in refused(tmp_path / "model.json")


def test_json_of_a_model_compiled_with_what_is_not_here(tmp_path: Path) -> None:
    model = my_encoders.functional("keras")
    content = json.loads(model.to_json())
    content["compile_config"] = {"loss": {"class_name": "Gone", "module": "gone", "config": {}}}
    (tmp_path / "model.json").write_text(json.dumps(content))
    model.save_weights(tmp_path / "w.weights.h5")
    options = {"weights": str(tmp_path / "w.weights.h5")}
    assert compute_features(tmp_path / "model.json", noise(), **options).shape == (4, 8)


@pytest.mark.parametrize("library", LIBRARIES)
def test_json_with_python_code_is_refused_and_not_run(tmp_path: Path, library: str) -> None:
    k, marker = LIBRARIES[library], tmp_path / "marker"
    path = str(marker)
    image = k.Input((16, 16, 3))
    layer = k.layers.Lambda(lambda x: (open(path, "w"), x * 2)[1], name="sneaky")  # noqa: SIM115
    model = k.Model(image, layer(k.layers.Conv2D(2, 3)(image)))
    (tmp_path / "model.json").write_text(model.to_json())
    model.save_weights(tmp_path / "w.weights.h5")
    marker.unlink()
    message = refused(tmp_path / "model.json", weights=str(tmp_path / "w.weights.h5"))
    assert "ambda" in message
    assert "module:callable" in message
    assert not marker.exists()


@pytest.mark.parametrize("library", LIBRARIES)
def test_json_with_layers_of_ones_own(tmp_path: Path, library: str) -> None:
    k = LIBRARIES[library]
    layer = my_layers.Doubled if library == "keras" else my_layers.Doubled2
    image = k.Input((16, 16, 3))
    model = k.Model(image, layer()(k.layers.Conv2D(2, 3)(image)))
    (tmp_path / "model.json").write_text(model.to_json())
    model.save_weights(tmp_path / "w.weights.h5")
    weights = str(tmp_path / "w.weights.h5")
    found = compute_features(
        tmp_path / "model.json", noise(), weights=weights, imports=("my_layers",)
    )
    assert_close(found, gap(call_model(model, noise())))


# --- files of real converters --------------------------------------------------------------------


def test_files_that_tensorflow_writes(tmp_path: Path) -> None:
    """The forms for whose content the unit tests have only imitations."""
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    model = my_encoders.functional("tf_keras", augment=False)
    traced = tf.function(lambda x: model(x)).get_concrete_function(IMAGES)
    frozen = convert_variables_to_constants_v2(traced)
    graph = frozen.graph.as_graph_def()
    (tmp_path / "frozen.pb").write_bytes(graph.SerializeToString())
    message = refused(tmp_path / "frozen.pb")
    assert "frozen GraphDef" in message
    assert "{'images': …}" in message
    (tmp_path / "frozen.pbtxt").write_text(str(graph))
    assert "frozen GraphDef" in refused(tmp_path / "frozen.pbtxt")
    converter = tf.lite.TFLiteConverter.from_concrete_functions([traced], model)
    (tmp_path / "encoder.tflite").write_bytes(converter.convert())
    assert "TensorFlow Lite" in refused(tmp_path / "encoder.tflite")
    # The way that the message names works.
    v1 = tf.compat.v1
    with v1.Session(graph=tf.Graph()) as session:
        tf.import_graph_def(graph, name="")
        images, features = map(
            session.graph.get_tensor_by_name, (frozen.inputs[0].name, frozen.outputs[0].name)
        )
        v1.saved_model.simple_save(
            session, str(tmp_path / "m"), {"images": images}, {"features": features}
        )
    assert_close(compute_features(tmp_path / "m", noise()), gap(call_model(model, noise())))


# --- through the command line --------------------------------------------------------------------

OLD = """
import tensorflow as tf

def encoder():
    image = tf.keras.Input((16, 16, 3))
    pixels = tf.keras.layers.experimental.preprocessing.Rescaling(1.0)(image)
    maps = tf.nn.relu(tf.keras.layers.Conv2D(4, 3, kernel_initializer="ones")(pixels))
    return tf.keras.Model(image, tf.reduce_mean(maps, (1, 2)))
"""


@pytest.mark.slow
def test_code_for_keras_2(ray_embed: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Ray here was started before the variable was set, as that of a cluster was."""
    folder = make_folder(Path("valid"), {"a": 2})
    Path("old_code.py").write_text(OLD)
    arguments = ("extract", "--source", folder, "--model", "old_code:encoder", "--out", "r")
    result = ray_embed(*arguments)
    assert result.code == 2
    assert "set TF_USE_LEGACY_KERAS=1" in result.err
    assert "\x1b" not in result.err
    monkeypatch.setenv("TF_USE_LEGACY_KERAS", "1")
    result = ray_embed(*arguments)
    assert result.code == 0, result.err
    images = pixels(folder) / np.float32(255)
    expected = gap(tf.nn.relu(tf.nn.conv2d(images, np.ones((3, 3, 3, 4)), 1, "VALID")).numpy())
    assert_close(package.load("r").to_numpy()[0], expected)


@pytest.mark.slow
def test_signature_and_its_note(ray_embed: Command, hub_module: Path) -> None:
    folder = make_folder(Path("valid"), {"a": 2})
    arguments = ("extract", "--source", folder, "--model", hub_module / "saved_model.pb")
    result = ray_embed(*arguments, "--out", "r")
    assert result.code == 0, result.err
    notes = [line for line in result.err.splitlines() if "of the SavedModel" in line]
    assert len(notes) == 1
    assert "warning" not in notes[0]
    identity = json.loads(Path("r/run.json").read_text())["identity"]
    assert not {"tags", "signature"} & set(identity)
    result = ray_embed(*arguments, "--out", "r", "--signature", "default", "--tags", "")
    assert result.code == 2
    assert "signature: was None, is default" in result.err
