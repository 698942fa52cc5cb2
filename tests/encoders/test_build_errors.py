# SPDX-License-Identifier: Apache-2.0
"""Models, weights, layers and poolings that do not fit: what is wrong and what would mend it.

Most are found by building the encoder in this process; some go through the command line, where the
exit code is 2, no traceback is shown, and nothing is written.
"""

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from support.command import Command
from support.encoders import PROJECT, my_encoders, my_layers, noise, spec
from support.pictures import make_folder

from ray_embed.encoders.build import build
from ray_embed.errors import InputError

LIBRARIES = my_encoders.LIBRARIES


def refused(model: Any, **options: Any) -> str:
    """Build an encoder that must be refused; gives the message."""
    with pytest.raises(InputError) as caught:
        build(spec(model, **options))
    message = str(caught.value)
    assert "Traceback" not in message
    return message


def has(message: str, *parts: Any) -> None:
    """Check that the message has all the parts."""
    missing = [str(part) for part in parts if str(part) not in message]
    assert not missing, f"{missing} not in: {message}"


# --- files that are no models --------------------------------------------------------------------


def _text(path: Path) -> None:
    path.write_text("not a model")


def _empty(path: Path) -> None:
    path.touch()


def _other_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")


def _truncated(path: Path) -> None:
    my_encoders.sequential().save(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _other_hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["x"] = np.zeros(3)


def _weights_alone(path: Path) -> None:
    my_encoders.sequential("tf_keras").save_weights(path)


def _damaged_config(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", '{"keras_version": "2.15.0"}')
        archive.writestr("config.json", '{"class_name": ')


def _damaged_config_in_hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = '{"class_name": '
        file.attrs["keras_version"] = "2.15.0"


def _folder(path: Path) -> None:
    path.mkdir()
    (path / "readme.txt").write_text("hello")


def _damaged_saved_model(path: Path) -> None:
    path.mkdir()
    (path / "saved_model.pb").write_bytes(b"nothing of the sort")


def _damaged_saved_model_of_keras_2(path: Path) -> None:
    my_encoders.sequential("tf_keras").save(path, save_format="tf")
    (path / "keras_metadata.pb").write_bytes(b"nothing of the sort")


def _saved_model_without_variables(path: Path) -> None:
    my_encoders.sequential("tf_keras").save(path, save_format="tf")
    shutil.rmtree(path / "variables")


def _saved_model_without_signature(path: Path) -> None:
    tf.saved_model.save(tf.Module(), str(path))


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("m.keras", _text),
        ("m.keras", _empty),
        ("m.keras", _other_zip),
        ("m.keras", _truncated),
        ("m.keras", _damaged_config),
        ("m.h5", _text),
        ("m.h5", _empty),
        ("m.h5", _truncated),
        ("m.h5", _other_hdf5),
        ("m.h5", _weights_alone),
        ("m.h5", _damaged_config_in_hdf5),
        ("m.weights.h5", _weights_alone),
        ("m.txt", _text),
        ("model", _text),
        ("model", _folder),
        ("model", _damaged_saved_model),
        ("model", _damaged_saved_model_of_keras_2),
        ("model", _saved_model_without_variables),
        ("model", _saved_model_without_signature),
    ],
)
def test_model_file_that_is_no_model(tmp_path: Path, name: str, write: Callable[[Path], None]):
    write(tmp_path / name)
    has(refused(tmp_path / name), "--model", tmp_path / name)


def test_file_of_weights_given_as_a_model_is_named_as_such(tmp_path: Path):
    _weights_alone(tmp_path / "w.h5")
    has(refused(tmp_path / "w.h5"), "--weights", "module:callable")


def test_unregistered_layers_of_tf_keras(tmp_path: Path):
    class Tripled(tf_keras.layers.Layer):
        def call(self, x):
            return x * 3

    model = tf_keras.Sequential([tf_keras.layers.InputLayer((16, 16, 3)), Tripled()])
    for name in ("m.keras", "m.h5"):
        model.save(tmp_path / name)
        has(refused(tmp_path / name), tmp_path / name, "Tripled", "--import")


def test_unregistered_layer_of_keras_3(tmp_path: Path):
    class Quadrupled(keras.layers.Layer):
        def call(self, x):
            return x * 4

    model = keras.Sequential([keras.Input((16, 16, 3)), Quadrupled()])
    for name in ("m.keras", "m.h5"):
        model.save(tmp_path / name)
        has(refused(tmp_path / name), tmp_path / name, "Quadrupled", "--import")


# --- weights that do not fit ---------------------------------------------------------------------


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("name", ["w/", "w.weights.h5", "w.h5"])
def test_weights_of_another_width(tmp_path: Path, library: str, name: str):
    k = tf_keras
    theirs = k.Sequential([k.layers.InputLayer((16, 16, 3)), k.layers.Conv2D(5, 3)])
    theirs.save_weights(f"{tmp_path}/{name}")

    def model():
        k = LIBRARIES[library]
        image = k.Input((16, 16, 3))
        return k.Model(image, k.layers.Conv2D(9, 3, name="conv")(image))

    message = refused(model, weights=f"{tmp_path}/{name}")
    # Kernel or bias: both differ, whichever the file's format meets first.
    has(message, f"{tmp_path}/{name}".rstrip("/"), "conv", "9)", "5", "--submodel")
    assert "kernel" in message or "bias" in message


@pytest.mark.parametrize("library", LIBRARIES)
def test_weights_of_another_architecture(tmp_path: Path, library: str):
    my_encoders.sequential("tf_keras").save_weights(tmp_path / "w" / "ckpt")
    message = refused(
        "my_encoders:functional", model_kwargs={"library": library}, weights=f"{tmp_path}/w"
    )
    has(message, f"{tmp_path}/w", "first", "(3, 3, 3, 6)", "(5, 5, 3, 5)")


@pytest.mark.parametrize("name", ["w", "w.weights.h5", "w.keras", "w.h5"])
def test_no_such_weights(tmp_path: Path, name: str):
    has(refused("my_encoders:functional", weights=f"{tmp_path}/{name}"), f"{tmp_path}/{name}")


def test_folder_with_several_checkpoints(tmp_path: Path):
    for name in ("one", "two"):
        my_encoders.functional("tf_keras").save_weights(tmp_path / "w" / name)
    (tmp_path / "w" / "checkpoint").unlink()
    message = refused("my_encoders:functional", weights=f"{tmp_path}/w")
    has(message, tmp_path / "w" / "one", tmp_path / "w" / "two")


def test_weights_for_a_saved_model_that_has_its_own(tmp_path: Path):
    my_encoders.functional(augment=False).export(tmp_path / "m", verbose=False)
    my_encoders.functional().save_weights(tmp_path / "w.weights.h5")
    has(refused(tmp_path / "m", weights=f"{tmp_path}/w.weights.h5"), "w.weights.h5", "--weights")


# --- layers, sizes, inputs and outputs -----------------------------------------------------------


@pytest.mark.parametrize("library", LIBRARIES)
def test_unknown_layer(library: str):
    message = refused(my_encoders.functional(library), layers=("secnd",))
    has(message, "--layer secnd", "second", "ray-embed layers")


def test_unknown_layer_of_a_nested_model():
    inner = my_encoders.functional()
    image = keras.Input((16, 16, 3))
    model = keras.Model(image, inner(image))
    has(refused(model, layers=("second",)), f"{inner.name}/second", "ray-embed layers")


def test_unknown_output_of_a_signature(tmp_path: Path):
    my_encoders.functional(augment=False).export(tmp_path / "m", verbose=False)
    has(refused(tmp_path / "m", layers=("second",)), "--layer second", "output_0")


@pytest.mark.parametrize("library", LIBRARIES)
def test_no_fixed_input_size(library: str):
    k = LIBRARIES[library]
    image = k.Input((None, None, 3))
    model = k.Model(image, k.layers.Conv2D(2, 3)(image))
    has(refused(model), "--image-size H,W")
    has(refused(my_encoders.subclassed(library)), "--image-size H,W")


def test_another_image_size_than_the_models():
    has(refused("my_encoders:functional", image_size=(32, 32)), "--image-size 32,32", "16,16")


def test_image_size_that_a_subclassed_model_cannot_take():
    message = refused("my_encoders:subclassed", image_size=(4, 4))
    has(message, "my_encoders:subclassed", "(3, 4, 4, 3)", "--image-size")


@pytest.mark.parametrize("library", LIBRARIES)
def test_several_inputs(library: str):
    k = LIBRARIES[library]
    left, right = k.Input((16, 16, 3), name="left"), k.Input((16, 16, 3), name="right")
    model = k.Model([left, right], k.layers.Conv2D(2, 3)(k.layers.Add()([left, right])))
    has(refused(model), "several inputs", "left", "right")


def test_several_inputs_of_a_signature(tmp_path: Path):
    class Two(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None, 16, 16, 3), name=n) for n in "ab"])
        def __call__(self, a, b):
            return {"sum": a + b}

    two = Two()
    tf.saved_model.save(two, str(tmp_path), signatures=two.__call__.get_concrete_function())
    has(refused(tmp_path), "several inputs", "a, b")


def test_input_that_is_no_image():
    model = keras.Sequential([keras.Input((784,)), keras.layers.Dense(3)])
    has(refused(model), "784", "images")


@pytest.mark.parametrize("library", LIBRARIES)
def test_several_outputs_without_a_layer(library: str):
    k = LIBRARIES[library]
    image = k.Input((16, 16, 3))
    outputs = [k.layers.Conv2D(2, 3, name=name)(image) for name in ("left", "right")]
    has(refused(k.Model(image, outputs)), "2 outputs", "--layer", "left", "right")


def test_several_outputs_of_a_signature(tmp_path: Path):
    class Two(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None, 16, 16, 3))])
        def __call__(self, x):
            return {"maps": x, "code": x[:, 0, 0]}

    two = Two()
    tf.saved_model.save(two, str(tmp_path), signatures=two.__call__.get_concrete_function())
    has(refused(tmp_path), "2 outputs", "--layer", "maps", "code")


@pytest.mark.parametrize("library", LIBRARIES)
def test_layer_called_twice(library: str):
    k = LIBRARIES[library]
    shared = k.layers.Conv2D(3, 3, padding="same", name="shared")
    image = k.Input((16, 16, 3))
    model = k.Model(image, k.layers.ReLU(name="last")(shared(shared(image))))
    has(refused(model, layers=("shared",)), "--layer shared", "2 times", "last")


@pytest.mark.parametrize(
    ("layer", "pool", "fitting"),
    [
        ("maps", "cls", "gap, gmp, gem, flatten"),
        ("maps", "none", "gap, gmp, gem, flatten"),
        ("tokens", "none", "cls"),
        ("code", "gap", "none"),
        ("code", "gmp", "none"),
        ("code", "gem", "none"),
        ("code", "cls", "none"),
    ],
)
def test_pooling_that_does_not_fit(layer: str, pool: str, fitting: str):
    image = keras.Input((16, 16, 3))
    x = keras.layers.Conv2D(4, 3, name="maps")(image)
    x = keras.layers.Reshape((-1, 4), name="tokens")(x)
    x = keras.layers.Dense(2, name="code")(keras.layers.Flatten()(x))
    message = refused(keras.Model(image, x), layers=(layer,), pool=pool)
    has(message, f"--pool {pool}", layer, fitting)


def test_output_of_a_rank_that_cannot_be_pooled():
    image = keras.Input((16, 16, 3))
    model = keras.Model(image, keras.layers.Reshape((4, 4, 16, 3), name="five")(image))
    has(refused(model), "rank 2", "--layer")
    has(refused(model, layers=("five",)), "--layer five", "rank 2")


# --- callables -----------------------------------------------------------------------------------


def test_no_such_module():
    has(refused("no_such_module_at_all:make"), "no_such_module_at_all", "PYTHONPATH", "rsync-up")


def test_module_that_fails_while_being_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "fails_at_import.py").write_text("1 / 0\n")
    (tmp_path / "imports_another.py").write_text("import no_such_package_here\n")
    has(refused("fails_at_import:make"), "fails_at_import", "ZeroDivisionError")
    has(refused("imports_another:make"), "imports_another", "no_such_package_here")


def test_no_such_callable():
    has(refused("my_encoders:functonal"), "my_encoders.py", "functonal", "functional")


@pytest.mark.parametrize(
    ("reference", "parts"),
    [
        ("my_encoders:number", ["my_encoders:number", "int", "Keras model"]),
        ("my_encoders:not_callable", ["my_encoders:not_callable", "str", "callable"]),
        ("my_encoders:broken", ["my_encoders:broken", "RuntimeError", "of the week is gone"]),
    ],
)
def test_callable_that_gives_no_model(reference: str, parts: list[str]):
    has(refused(reference), *parts)


def test_wrong_arguments_of_a_callable():
    message = refused("my_encoders:functional", model_kwargs={"depth": 3})
    has(message, "my_encoders:functional", "depth", "TypeError")
    has(refused("my_encoders:AutoEncoder"), "my_encoders:AutoEncoder", "input_img_shape")


def test_object_without_submodel_or_with_another():
    arguments = {"input_img_shape": (16, 16, 3)}
    message = refused("my_encoders:AutoEncoder", model_kwargs=arguments)
    has(message, "AutoEncoder", "--submodel", "forward_model", "model")
    message = refused("my_encoders:AutoEncoder", model_kwargs=arguments, submodel="encoder")
    has(message, "'encoder'", "forward_model")


def test_preprocessing_that_fails_or_cannot_be_found():
    has(refused("my_encoders:functional", preprocess="my_encoders:nothing"), "--preprocess")
    message = refused("my_encoders:functional", preprocess="my_encoders:broken")
    has(message, "--preprocess my_encoders:broken", "TypeError")


def test_no_such_module_to_import():
    has(refused("my_encoders:functional", imports=("no_layers",)), "--import no_layers")


def test_model_in_hand_that_only_a_callable_can_ship():
    message = refused(my_encoders.with_numpy(), image_size=(16, 16))
    has(message, "folded", "module:callable")


# --- encoders that are not deterministic ---------------------------------------------------------


@pytest.mark.parametrize("library", LIBRARIES)
def test_sampling_encoder(library: str):
    k = LIBRARIES[library]

    class Sampling(k.layers.Layer):
        def call(self, inputs):
            mean, log_variance = inputs
            return mean + tf.exp(0.5 * log_variance) * tf.random.normal(tf.shape(mean))

    image = k.Input((16, 16, 3))
    x = k.layers.Flatten()(k.layers.Conv2D(4, 3, strides=3)(image))
    mean, log_variance = (k.layers.Dense(4, name=f"z_{name}")(x) for name in ("mean", "log_var"))
    model = k.Model(image, Sampling(name="z")([mean, log_variance]))
    message = refused(model)
    has(message, "--layer", "z_mean", "z_log_var")
    proposed = message.partition("--layer:")[2].replace(" ", "").split(",")
    assert "z" not in proposed
    assert proposed.index("z_mean") <= 1


@pytest.mark.parametrize("library", LIBRARIES)
def test_dropout_that_stays_on(library: str):
    k = LIBRARIES[library]

    class Net(k.Model):
        def __init__(self):
            super().__init__()
            self.conv = k.layers.Conv2D(4, 3, name="before")
            self.dropout = k.layers.Dropout(0.5, name="after")

        def call(self, images):
            return self.dropout(self.conv(images), training=True)

    message = refused(Net(), image_size=(16, 16))
    has(message, "before")
    assert "after" not in message.partition("--layer:")[2]


def test_exported_model_that_goes_on_augmenting(tmp_path: Path):
    """Keras 3 exports its augmenting layers switched on."""
    my_encoders.functional("keras").export(tmp_path / "m", verbose=False)
    has(refused(tmp_path / "m"), tmp_path / "m", "two calls")


# --- code in model files is not run --------------------------------------------------------------


def lambda_model(k: Any, marker: Path) -> Any:
    """A model whose Lambda leaves a mark when it runs."""
    path = str(marker)
    image = k.Input((16, 16, 3))
    x = k.layers.Conv2D(2, 3)(image)
    layer = k.layers.Lambda(lambda x: (open(path, "w"), x * 2)[1], name="sneaky")  # noqa: SIM115
    return k.Model(image, layer(x))


@pytest.mark.parametrize(
    ("library", "name"),
    [
        ("keras", "m.keras"),
        ("keras", "m.h5"),
        ("tf_keras", "m.keras"),
        ("tf_keras", "m.h5"),
        ("tf_keras", "m"),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_lambda_is_refused_and_not_run(tmp_path: Path, library: str, name: str, nested: bool):
    k, marker = LIBRARIES[library], tmp_path / "marker"
    model = lambda_model(k, marker)
    if nested:
        image = k.Input((16, 16, 3))
        model = k.Model(image, k.Sequential([model, k.layers.ReLU()])(image))
    model.save(tmp_path / name)
    assert marker.exists()
    marker.unlink()
    message = refused(tmp_path / name)
    has(message, tmp_path / name, "ambda", "module:callable", "--weights")
    if name == "m":
        has(message, "'sneaky'")
    assert not marker.exists()


@pytest.mark.parametrize("name", ["m.keras", "m.h5"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_lambda_as_activation_is_refused_and_not_run(tmp_path: Path, library: str, name: str):
    k, marker = LIBRARIES[library], tmp_path / "marker"
    path = str(marker)
    model = k.Sequential([k.Input((16, 16, 3)) if k is keras else k.layers.InputLayer((16, 16, 3))])
    model.add(k.layers.Conv2D(2, 3, activation=lambda x: (open(path, "w"), x)[1]))  # noqa: SIM115
    model(noise())
    model.save(tmp_path / name)
    marker.unlink()
    has(refused(tmp_path / name), tmp_path / name, "module:callable")
    assert not marker.exists()


def _rewritten(path: Path, change: Callable[[str], str]) -> None:
    """Rewrite the configuration stored in a model file."""
    if path.suffix == ".h5":
        with h5py.File(path, "r+") as file:
            text = file.attrs["model_config"]
            file.attrs["model_config"] = change(text if isinstance(text, str) else text.decode())
        return
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    entries["config.json"] = change(entries["config.json"].decode()).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


@pytest.mark.parametrize("name", ["m.keras", "m.h5"])
@pytest.mark.parametrize("disguise", ["path", "registered name", "shape only"])
def test_disguised_lambda_is_refused_and_not_run(tmp_path: Path, disguise: str, name: str):
    marker = tmp_path / "marker"
    lambda_model(tf_keras, marker).save(tmp_path / name)
    marker.unlink()

    def disguised(layer: dict[str, Any]) -> None:
        layer |= {"module": "keras", "class_name": "layers.Lambda"}
        if disguise == "registered name":
            module = "tf_keras.src.layers.core.lambda_layer"
            layer |= {"module": module, "class_name": "Plain", "registered_name": "Lambda"}
        if disguise == "shape only":
            config = layer["config"]
            code = config["function"]
            config |= {"function": "relu", "function_type": "function"}
            config |= {"output_shape": code, "output_shape_type": "lambda"}

    def change(text: str) -> str:
        config = json.loads(text)
        for layer in config["config"]["layers"]:
            if layer["class_name"] == "Lambda":
                disguised(layer)
        return json.dumps(config)

    _rewritten(tmp_path / name, change)
    has(refused(tmp_path / name), tmp_path / name, "ambda")
    assert not marker.exists()


@pytest.mark.parametrize("name", ["m.keras", "m.h5"])
def test_function_that_nobody_registered_is_refused(tmp_path: Path, name: str):
    """A file may ask for any function of any module; only registered ones are let through."""
    model = tf_keras.Sequential([tf_keras.layers.InputLayer((16, 16, 3))])
    model.add(tf_keras.layers.Conv2D(4, 3, activation=my_layers.squared))
    model.save(tmp_path / name)
    _rewritten(tmp_path / name, lambda text: text.replace("mine2>squared", "exec"))
    has(refused(tmp_path / name), tmp_path / name, "'exec'", "--import")


# --- through the command line --------------------------------------------------------------------


@pytest.fixture
def run_refused(ray_embed: Command, tmp_path: Path) -> Callable[..., str]:
    """Run the command with bad input on good pictures; gives the message."""
    for module in PROJECT.glob("*.py"):
        shutil.copy(module, tmp_path)
    make_folder(tmp_path / "valid", {"a": 2})

    def call(*options: Any) -> str:
        before = sorted(path for path in tmp_path.rglob("*") if "__pycache__" not in path.parts)
        result = ray_embed("run", "--source", "valid", "--out", "new/run", *options)
        after = sorted(path for path in tmp_path.rglob("*") if "__pycache__" not in path.parts)
        assert result.code == 2, result.err
        assert "Traceback" not in result.err
        assert result.out == ""
        assert after == before
        return result.err

    return call


def test_command_with_no_such_file_or_module(run_refused: Callable[..., str]):
    has(run_refused("--model", "missing.keras"), "--model missing.keras", "no such file")
    has(run_refused("--model", "encoder"), "--model encoder", "module:callable")


def test_command_with_a_module_that_is_not_there(run_refused: Callable[..., str], tmp_path: Path):
    has(run_refused("--model", "my_encodrs:functional"), "my_encodrs", tmp_path)


def test_command_with_weights_that_do_not_fit(run_refused: Callable[..., str], tmp_path: Path):
    my_encoders.sequential("tf_keras").save_weights("w/")
    message = run_refused("--model", "my_encoders:functional", "--weights", "w")
    has(message, tmp_path / "w", "first", "(3, 3, 3, 6)", "(5, 5, 3, 5)")


def test_probes_do_not_disturb_the_model_in_hand():
    """A refused model object is as it was."""
    model = my_encoders.functional()
    before = [value.copy() for value in model.get_weights()]
    refused(model, layers=("nothing",))
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    assert np.asarray(model(noise())).shape == (4, 5, 5, 8)
