# SPDX-License-Identifier: Apache-2.0
"""Files by any name, classes that nobody registered, models inside models, and their weights.

Features must equal those of a plain call of the encoder.
"""

import json
import shutil
import sys
import zipfile
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import h5py
import keras
import numpy as np
import pytest
import tf_keras
from support.command import Command
from support.encoders import PROJECT, call_model, compute_features, gap, my_encoders, noise, spec
from support.features import assert_features_equal

from ray_embed.encoders.build import build
from ray_embed.encoders.layer_shapes import list_shapes
from ray_embed.errors import InputError

import my_vae  # isort: skip - found by what `encoders` puts on the path

LIBRARIES = my_encoders.LIBRARIES
IMAGES = noise()


def refused(model: Any, **options: Any) -> str:
    """Build an encoder that must be refused; gives the message."""
    with pytest.raises(InputError) as caught:
        build(spec(model, **options))
    return str(caught.value)


def has(message: str, *parts: Any) -> None:
    """Check that the message has all the parts."""
    missing = [str(part) for part in parts if str(part) not in message]
    assert not missing, f"{missing} not in: {message}"


# --- what a file is called says nothing of what is in it -----------------------------------------


@pytest.mark.parametrize(
    ("library", "saved", "given"),
    [
        ("keras", "m.keras", "m.h5"),
        ("keras", "m.keras", "model"),
        ("keras", "m.keras", "m.KERAS"),
        ("keras", "m.h5", "renamed.keras"),
        ("keras", "m.h5", "m.hdf5"),
        # TensorFlow up to 2.11 wrote HDF5 to this name.
        ("tf_keras", "m.h5", "renamed.keras"),
        ("tf_keras", "m.h5", "epoch.07"),
        ("tf_keras", "m.keras", "m.hdf5"),
    ],
)
def test_model_file_by_its_content(tmp_path: Path, library: str, saved: str, given: str):
    model = my_encoders.functional(library)
    model.save(tmp_path / saved)
    (tmp_path / saved).rename(tmp_path / given)
    assert_features_equal(
        compute_features(tmp_path / given, IMAGES), gap(call_model(model, IMAGES))
    )


@pytest.mark.parametrize("target", LIBRARIES)
@pytest.mark.parametrize(
    ("library", "saved", "given"),
    [
        # ModelCheckpoint's pattern of old.
        ("tf_keras", "w.h5", "weights.01-0.25.hdf5"),
        ("tf_keras", "w.h5", "renamed.keras"),
        ("tf_keras", "w.weights.h5", "best"),
        ("keras", "w.weights.h5", "w.hdf5"),
        ("keras", "w.keras", "w.h5"),
        ("keras", "whole.h5", "w.weights"),
    ],
)
def test_weights_by_their_content(
    tmp_path: Path, library: str, saved: str, given: str, target: str
):
    model = my_encoders.functional(library, seed=6)
    weights_only = saved.startswith("w.") and not saved.endswith(".keras")
    (model.save_weights if weights_only else model.save)(tmp_path / saved)
    (tmp_path / saved).rename(tmp_path / given)
    found = compute_features(
        "my_encoders:functional",
        IMAGES,
        model_kwargs={"library": target},
        weights=str(tmp_path / given),
    )
    assert_features_equal(found, gap(call_model(model, IMAGES)))


def test_weights_alone_given_as_a_model_by_another_name(tmp_path: Path):
    my_encoders.functional().save_weights(tmp_path / "w.weights.h5")
    (tmp_path / "w.weights.h5").rename(tmp_path / "model.keras")
    has(refused(tmp_path / "model.keras"), "weights alone", "--weights")


def test_file_of_neither_kind(tmp_path: Path):
    (tmp_path / "w.bin").write_bytes(b"\x00" * 64)
    has(refused(tmp_path / "w.bin"), "not a model")
    message = refused("my_encoders:functional", weights=str(tmp_path / "w.bin"))
    has(message, "not a file of weights", ".weights.h5")


# --- classes and functions that are not registered -----------------------------------------------


@pytest.fixture(scope="module")
def saved_vae(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, np.ndarray]]:
    """Save the encoder of `my_vae` in each form; gives path and expected features by form."""
    folder = tmp_path_factory.mktemp("vae")
    found = {}
    forms = {"keras": (".keras", ".h5"), "tf_keras": (".keras", "")}
    for library, endings in forms.items():
        model = my_encoders.filled(my_vae.encoder(library))
        model.compile("adam", my_vae.far)
        for ending in endings:
            path = folder / f"{library}{ending}"
            model.save(path)
            found[path.name] = path, gap(call_model(model, IMAGES))
    return found


@pytest.mark.parametrize("form", ["keras.keras", "keras.h5", "tf_keras.keras", "tf_keras"])
def test_classes_and_functions_of_an_imported_module(
    saved_vae: dict[str, tuple[Path, np.ndarray]], form: str
):
    path, expected = saved_vae[form]
    assert_features_equal(compute_features(path, IMAGES, imports=("my_vae",)), expected)


@pytest.mark.parametrize("form", ["keras.keras", "keras.h5", "tf_keras.keras"])
def test_what_is_missing_is_named(saved_vae: dict[str, tuple[Path, np.ndarray]], form: str):
    path, _ = saved_vae[form]
    missing = "'bent'" if "tf_keras" in form else "'Patches'"
    message = refused(path)
    has(message, missing, "--import")
    if "tf_keras" not in form:
        has(message, "--import my_vae")
    message = refused(path, imports=("my_layers",))
    has(message, missing, "my_layers", "--import")


def test_unregistered_layer_in_an_old_file(tmp_path: Path):
    """An .h5 file has a class by its name alone, as TensorFlow has always written it."""
    image = tf_keras.Input((16, 16, 3))
    x = my_vae.Patches2(3, name="patches")(image)
    model = my_encoders.filled(tf_keras.Model(image, tf_keras.layers.Conv2D(2, 3)(x)))
    model.save(tmp_path / "m.h5")
    found = compute_features(tmp_path / "m.h5", IMAGES, imports=("my_vae",))
    assert_features_equal(found, gap(call_model(model, IMAGES)))
    has(refused(tmp_path / "m.h5"), "class 'Patches2'", "--import")


def test_unregistered_model_class_around_a_compiled_one(tmp_path: Path):
    inner = my_encoders.filled(my_vae.encoder())
    inner.compile("adam", my_vae.far)
    model = my_vae.Wrapped(inner)
    expected = gap(call_model(model, IMAGES))
    model.save(tmp_path / "m.keras")
    options: dict[str, Any] = {"imports": ("my_vae",), "image_size": (16, 16)}
    assert_features_equal(compute_features(tmp_path / "m.keras", IMAGES, **options), expected)


def test_class_of_the_other_keras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    image = tf_keras.Input((16, 16, 3))
    tf_keras.Model(image, my_vae.Patches2(2)(image)).save(tmp_path / "m.h5")
    module = ModuleType("other_keras")
    module.Patches2 = type("Patches2", (keras.layers.Layer,), {})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "other_keras", module)
    message = refused(tmp_path / "m.h5", imports=("other_keras",))
    has(message, "Patches2", "for tf_keras", "other_keras is for keras")


def _package(monkeypatch: pytest.MonkeyPatch, **parts: dict[str, Any]) -> None:
    """Make a package whose parts have been imported, as `import package` does."""
    for name in ("package", *(f"package.{part}" for part in parts)):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for part, values in parts.items():
        for name, value in values.items():
            value.__module__ = f"package.{part}"
            setattr(sys.modules[f"package.{part}"], name, value)


def _layer(factor: float) -> Any:
    def call(self: Any, images: Any) -> Any:
        return images * factor

    return type("Scaled", (keras.layers.Layer,), {"call": call})


def test_class_in_a_part_of_an_imported_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Two parts have a class of this name; the file knows which one, or does not."""
    first, second = _layer(2), _layer(3)
    _package(monkeypatch, a={"Scaled": first}, b={"Scaled": second})
    image = keras.Input((16, 16, 3))
    model = keras.Model(image, second()(image))
    for name in ("m.keras", "m.h5"):
        model.save(tmp_path / name)
    found = compute_features(tmp_path / "m.keras", IMAGES, imports=("package",))
    assert_features_equal(found, gap(IMAGES * 3))
    has(refused(tmp_path / "m.h5", imports=("package",)), "'Scaled'", "package.a, package.b")
    found = compute_features(tmp_path / "m.h5", IMAGES, imports=("package.b",))
    assert_features_equal(found, gap(IMAGES * 3))


def test_class_that_is_called_as_one_of_keras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The user's goes to what was saved of the user's, and only to that."""
    own = type(
        "Rescaling", (keras.layers.Layer,), {"call": lambda self, x: x * 5, "__module__": "mine"}
    )
    module = ModuleType("mine")
    module.Rescaling = own  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mine", module)
    image = keras.Input((16, 16, 3))
    x = keras.layers.Rescaling(7, name="keras")(own(name="own")(image))
    keras.Model(image, x).save(tmp_path / "m.keras")
    found = compute_features(tmp_path / "m.keras", IMAGES, imports=("mine",))
    assert_features_equal(found, gap(IMAGES * 35))


def test_random_weights_of_unregistered_classes(saved_vae: dict[str, tuple[Path, np.ndarray]]):
    path, trained = saved_vae["keras.keras"]
    found = compute_features(path, IMAGES, imports=("my_vae",), weights="random")
    assert found.shape == trained.shape
    assert not np.allclose(found, trained)


# tf_keras itself cannot read from .h5 what it writes of a function.
def test_file_that_keras_writes_and_cannot_read(tmp_path: Path):
    model = my_encoders.filled(my_vae.encoder("tf_keras"))
    model.save(tmp_path / "m.h5")
    message = refused(tmp_path / "m.h5", imports=("my_vae",))
    has(message, ".keras", "--weights")
    assert "--import" not in message
    found = compute_features(
        "my_vae:encoder",
        IMAGES,
        model_kwargs={"library": "tf_keras"},
        weights=str(tmp_path / "m.h5"),
    )
    assert_features_equal(found, gap(call_model(model, IMAGES)))


def test_error_that_only_holds_the_word_class(tmp_path: Path):
    """Keras 3 cannot read its own .h5 of a model that adds a number."""
    image = keras.Input((16, 16, 3))
    x = keras.layers.Conv2D(4, 3)(image) + 3.0
    keras.Model(image, x).save(tmp_path / "m.h5")
    message = refused(tmp_path / "m.h5")
    assert "class" in message
    assert "--import" not in message
    has(message, "save the model as .keras", "--weights")


@pytest.mark.parametrize(
    "name",
    [
        "model.h5",
        pytest.param("model.keras", marks=pytest.mark.slow),
        pytest.param("model.json", marks=pytest.mark.slow),
    ],
)
def test_file_of_keras_2_in_a_process_of_its_own(
    ray_embed_process: Command, tmp_path: Path, name: str
):
    # This process has tf_keras, which another one imports only for such a file.
    convnext = tf_keras.src.applications.convnext
    image = tf_keras.Input((16, 16, 3))
    layer = convnext.LayerScale(0.5, 4, name="scaled")
    model = tf_keras.Model(image, layer(tf_keras.layers.Conv2D(4, 3)(image)))
    options = []
    if name == "model.json":
        (tmp_path / name).write_text(model.to_json())
        model.save_weights(tmp_path / "model.weights.h5")
        options = ["--weights", "model.weights.h5"]
    else:
        model.save(tmp_path / name)
    listed = ray_embed_process("layers", "--model", name, *options)
    assert listed.code == 0, listed.err
    assert "scaled\t(N, 14, 14, 4)" in listed.out


@pytest.mark.parametrize("ending", [".h5", ".keras"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_layers_of_keras_applications(tmp_path: Path, library: str, ending: str):
    """ConvNeXt and InceptionResNetV2 have layers that Keras' own readers do not all know."""
    source = {"keras": keras.src, "tf_keras": tf_keras.src}[library].applications
    k = LIBRARIES[library]
    image = k.Input((16, 16, 3))
    x = k.layers.Conv2D(4, 3)(image)
    x = source.convnext.LayerScale(0.5, 4)(x)
    x = source.convnext.StochasticDepth(0.5)(x)
    x = source.inception_resnet_v2.CustomScaleLayer(0.3)([x, x])
    model = my_encoders.filled(k.Model(image, x))
    model.save(tmp_path / f"m{ending}")
    found = compute_features(tmp_path / f"m{ending}", IMAGES)
    assert_features_equal(found, gap(call_model(model, IMAGES)))


def _with_activation(path: Path, activation: Any) -> None:
    """Write an .h5 file of an older TensorFlow that names this activation."""
    image = tf_keras.Input((16, 16, 3))
    tf_keras.Model(image, tf_keras.layers.Conv2D(2, 3, activation="tanh")(image)).save(path)
    with h5py.File(path, "r+") as file:
        text = file.attrs["model_config"]
        text = text if isinstance(text, str) else text.decode()
        assert text.count('"tanh"') == 1
        file.attrs["model_config"] = text.replace('"tanh"', json.dumps(activation))


def test_function_of_an_old_file(tmp_path: Path):
    _with_activation(tmp_path / "m.h5", "bent")
    found = compute_features(tmp_path / "m.h5", IMAGES, imports=("my_vae",))
    assert found.shape == (4, 2)
    assert found.min() >= -1 / 16  # the least value of x * x - x / 2


def test_functions_of_keras_go_before_those_of_the_module(tmp_path: Path):
    _with_activation(tmp_path / "m.h5", "relu")
    assert compute_features(tmp_path / "m.h5", IMAGES, imports=("my_vae",)).min() >= 0


@pytest.mark.parametrize(
    "activation",
    [
        # What the module has imported from elsewhere.
        "run",
        # Keras would call these with what the file says.
        {"class_name": "run", "config": {"args": ["touch", "marker"]}},
        {"class_name": "left_behind", "config": {"path": "marker"}},
        ["left_behind", {"class_name": "left_behind", "config": {"path": "marker"}}],
    ],
)
def test_functions_are_not_called_with_what_a_file_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, activation: Any
):
    monkeypatch.chdir(tmp_path)
    _with_activation(tmp_path / "m.h5", activation)
    refused(tmp_path / "m.h5", imports=("my_vae",))
    assert not (tmp_path / "marker").exists()


# --- models inside models ------------------------------------------------------------------------


def _encoder(k: Any, name: str = "encoder") -> Any:
    image = k.Input((16, 16, 3))
    x = k.layers.Conv2D(4, 3, strides=2, name="first")(image)
    return k.Model(image, k.layers.BatchNormalization(name="norm")(x), name=name)


def siamese(k: Any, inputs: int = 2) -> Any:
    encoder = _encoder(k)
    images = [k.Input((16, 16, 3), name=f"image_{at}") for at in range(inputs)]
    codes = [k.layers.Flatten()(encoder(image)) for image in images]
    return my_encoders.filled(k.Model(images, k.layers.Concatenate()(codes)))


def auto_encoder(k: Any, name: str = "encoder") -> Any:
    """An auto-encoder whose halves are nested models; the encoder is two of them itself."""
    image, code = k.Input((16, 16, 3)), k.Input((7, 7, 4))
    backbone = _encoder(k, name)
    half = k.Sequential([k.layers.Activation("tanh", name="squash")], name="squeeze")
    outer = k.Model(image, half(backbone(image)), name="front")
    decoder = k.Model(code, k.layers.Conv2DTranspose(3, 3)(code), name="decoder")
    return my_encoders.filled(k.Model(image, decoder(outer(image)), name="whole"))


@pytest.mark.parametrize(
    ("library", "ending"),
    [
        *(("keras", ending) for ending in (".keras", ".h5")),
        *(("tf_keras", ending) for ending in (".keras", ".h5", "")),
    ],
)
def test_encoder_inside_a_saved_siamese_model(tmp_path: Path, library: str, ending: str):
    model = siamese(LIBRARIES[library])
    model.save(tmp_path / f"m{ending}")
    expected = gap(call_model(model.get_layer("encoder"), IMAGES))
    found = compute_features(tmp_path / f"m{ending}", IMAGES, submodel="encoder")
    assert_features_equal(found, expected)
    message = refused(tmp_path / f"m{ending}")
    has(message, "several inputs", "image_0", "--submodel: encoder")


def test_encoder_inside_a_triplet_of_stacked_images():
    inner = my_encoders.filled(_encoder(keras))
    images = keras.Input((3, 16, 16, 3))
    model = keras.Model(images, keras.layers.TimeDistributed(inner, name="each")(images))
    has(refused(model), "(None, 3, 16, 16, 3)", "--submodel: each.layer")
    found = compute_features(model, IMAGES, submodel="each.layer")
    assert_features_equal(found, gap(call_model(inner, IMAGES)))


@pytest.mark.parametrize("library", LIBRARIES)
def test_nested_halves_of_an_auto_encoder(tmp_path: Path, library: str):
    model = auto_encoder(LIBRARIES[library])
    model.save(tmp_path / "m.keras")
    front = model.get_layer("front")
    for path, half in {"front": front, "front.encoder": front.get_layer("encoder")}.items():
        found = compute_features(tmp_path / "m.keras", IMAGES, submodel=path)
        assert_features_equal(found, gap(call_model(half, IMAGES)))
    message = refused(tmp_path / "m.keras", submodel="bottleneck")
    has(message, "'bottleneck'", "front, decoder, front.encoder, front.squeeze")


def test_layer_names_with_dots():
    """As those of MobileNet: mobilenetv2_1.00_224."""
    model = auto_encoder(keras, "net_1.00_16")
    expected = gap(call_model(model.get_layer("front").get_layer("net_1.00_16"), IMAGES))
    found = compute_features(model, IMAGES, submodel="front.net_1.00_16")
    assert_features_equal(found, expected)


def test_a_leaf_is_no_submodel():
    has(refused(_encoder(keras), submodel="first"), "'first'", "none")


def test_models_of_a_container():
    encoder = my_encoders.filled(_encoder(keras))
    expected = gap(call_model(encoder, IMAGES))
    for made, path in (
        ((encoder, _encoder(keras)), "0"),
        ({"nets": [_encoder(keras), encoder]}, "nets.1"),
        (SimpleNamespace(nets={"a": encoder}), "nets.a"),
    ):
        has(refused(lambda made=made: made), f"--submodel: {path.partition('.')[0]}")
        found = compute_features(lambda made=made: made, IMAGES, submodel=path)
        assert_features_equal(found, expected)


@pytest.mark.parametrize("library", LIBRARIES)
def test_what_the_whole_does_to_its_images_is_said(library: str):
    """It is left out where the encoder is taken alone."""
    k = LIBRARIES[library]
    encoder = _encoder(k)
    image, other = k.Input((16, 16, 3)), k.Input((16, 16, 3))
    rescaled = k.layers.Rescaling(1 / 127.5, -1)
    whole = k.Model(
        [image, other],
        k.layers.Add()([encoder(rescaled(image)), encoder(rescaled(other))]),
        name="whole",
    )
    (note,) = build(spec(whole, submodel="encoder")).notes
    has(note, "inside whole", "encoder", "0–255 as -1 to 1", "--scale")
    assert build(spec(siamese(k), submodel="encoder")).notes == ()


@pytest.mark.parametrize("saved_from", ["whole", "encoder"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_weights_for_an_encoder_that_is_a_layer(tmp_path: Path, library: str, saved_from: str):
    k = LIBRARIES[library]
    theirs = siamese(k)
    encoder = theirs.get_layer("encoder")
    (theirs if saved_from == "whole" else encoder).save_weights(tmp_path / "w.weights.h5")
    found = compute_features(
        lambda: siamese(k), IMAGES, submodel="encoder", weights=str(tmp_path / "w.weights.h5")
    )
    assert_features_equal(found, gap(call_model(encoder, IMAGES)))


@pytest.mark.parametrize("library", LIBRARIES)
def test_nested_models_are_listed_first(library: str):
    models, layers = list_shapes(spec(auto_encoder(LIBRARIES[library])))
    assert models == {
        "front": (None, 7, 7, 4),
        "decoder": (None, 9, 9, 3),
        "front.encoder": (None, 7, 7, 4),
        "front.squeeze": (None, 7, 7, 4),
    }
    assert "front/encoder/first" in layers
    models, _ = list_shapes(spec(auto_encoder(LIBRARIES[library]), submodel="front"))
    assert list(models) == ["front.encoder", "front.squeeze"]


def test_layers_command_says_what_submodel_accepts(command: Command, tmp_path: Path):
    auto_encoder(keras).save(tmp_path / "m.keras")
    result = command("layers", "--model", "m.keras")
    assert result.code == 0, result.err
    lines = [line.split("\t") for line in result.out.splitlines()]
    assert lines[:2] == [
        ["front", "(N, 7, 7, 4)", "--submodel front"],
        ["decoder", "(N, 9, 9, 3)", "--submodel decoder"],
    ]
    assert ["front/encoder/first", "(N, 7, 7, 4)"] in lines[4:]
    assert all(len(line) == 2 for line in lines[4:])


# --- weights of a whole that was never called ----------------------------------------------------


def _whole(k: Any, how: str = "called") -> Any:
    """Make a subclassed model around an encoder; nothing of it has variables yet.

    Args:
        k: the Keras.
        how: whether it can be called on images: "called", "built" (only its own build makes all
            variables), "pairs" (two images), "uncallable", or "functional" (uncallable too, but
            its halves are functional models).
    """

    class Half(k.Model):
        def __init__(self, layers: list[Any]):
            super().__init__()
            self.parts = layers

        def call(self, x: Any, training: Any = None) -> Any:
            for layer in self.parts:
                x = layer(x)
            return x

    class Whole(k.Model):
        def __init__(self) -> None:
            super().__init__()
            layers = k.layers
            self.encoder = Half([layers.Conv2D(4, 3, strides=2), layers.BatchNormalization()])
            self.decoder = Half([layers.Conv2DTranspose(3, 3), layers.Conv2D(3, 3)])
            if how == "functional":
                code = k.Input((7, 7, 4))
                self.encoder = _encoder(k)
                self.decoder = k.Model(code, layers.Conv2DTranspose(3, 3)(code))
            self.tracker = k.metrics.Mean(name="loss")

    if how == "called":
        Whole.call = lambda self, x: self.decoder(self.encoder(x))
    elif how == "pairs":
        Whole.call = lambda self, x: self.decoder(self.encoder(x[0]) - self.encoder(x[1]))
    elif how == "built":

        def build_all(self: Any, shape: Any) -> None:
            self.decoder(self.encoder(np.zeros((1, *shape[1:]), np.float32)))
            self.built = True

        Whole.build = build_all
    return Whole()


def _trained(k: Any, how: str) -> Any:
    """Make the same with weights that no initializer gives."""
    model = _whole(k, how)
    model.decoder(model.encoder(IMAGES))
    for half, seed in ((model.encoder, 1), (model.decoder, 2)):
        my_encoders.filled(half, seed)
    model.built = True
    return model


@pytest.mark.parametrize(
    ("library", "name", "how", "target"),
    [
        ("keras", "w.weights.h5", "called", "keras"),
        ("keras", "w.weights.h5", "pairs", "keras"),
        ("keras", "w.weights.h5", "built", "keras"),
        # The part of the file that is the encoder's is loaded alone.
        ("keras", "w.weights.h5", "uncallable", "keras"),
        ("tf_keras", "w.weights.h5", "called", "keras"),
        ("tf_keras", "w.weights.h5", "called", "tf_keras"),
        ("tf_keras", "w.h5", "called", "keras"),
        ("tf_keras", "w.h5", "called", "tf_keras"),
        ("tf_keras", "w.h5", "pairs", "tf_keras"),
        ("tf_keras", "w.h5", "built", "tf_keras"),
        ("tf_keras", "w.h5", "functional", "tf_keras"),
        ("tf_keras", "w.hdf5", "functional", "keras"),
        ("tf_keras", "w/", "uncallable", "keras"),
        ("tf_keras", "w/", "uncallable", "tf_keras"),
    ],
)
def test_weights_of_a_whole_that_was_never_called(
    tmp_path: Path, library: str, name: str, how: str, target: str
):
    theirs = _trained(LIBRARIES[library], how)
    theirs.save_weights(f"{tmp_path}/{name}")
    found = compute_features(
        lambda: _whole(LIBRARIES[target], how),
        IMAGES,
        submodel="encoder",
        weights=f"{tmp_path}/{name}",
        image_size=(16, 16),
    )
    assert_features_equal(found, gap(call_model(theirs.encoder, IMAGES)))


def test_weights_of_a_whole_in_an_object_of_the_users(tmp_path: Path):
    theirs = _trained(keras, "called")
    theirs.save_weights(tmp_path / "w.weights.h5")
    for path, made in (
        ("vae.encoder", lambda: SimpleNamespace(vae=_whole(keras))),
        ("part.vae.encoder", lambda: SimpleNamespace(part=SimpleNamespace(vae=_whole(keras)))),
    ):
        found = compute_features(
            made,
            IMAGES,
            submodel=path,
            weights=str(tmp_path / "w.weights.h5"),
            image_size=(16, 16),
        )
        assert_features_equal(found, gap(call_model(theirs.encoder, IMAGES)))


@pytest.mark.parametrize("library", LIBRARIES)
def test_whole_that_cannot_be_called(tmp_path: Path, library: str):
    _trained(tf_keras, "uncallable").save_weights(tmp_path / "w.h5")
    message = refused(
        lambda: _whole(LIBRARIES[library], "uncallable"),
        submodel="encoder",
        weights=str(tmp_path / "w.h5"),
        image_size=(16, 16),
    )
    has(message, "w.h5", "Whole", "no method `call`", "--model")


def test_weights_of_another_whole_are_refused(tmp_path: Path):
    """Of the whole, the encoder's part has other shapes."""
    k = keras
    other = _whole(k)
    other.encoder.parts = [k.layers.Conv2D(5, 3, strides=2), k.layers.BatchNormalization()]
    other.decoder(other.encoder(IMAGES))
    other.built = True
    other.save_weights(tmp_path / "w.weights.h5")
    message = refused(
        lambda: _whole(k),
        submodel="encoder",
        weights=str(tmp_path / "w.weights.h5"),
        image_size=(16, 16),
    )
    has(message, "w.weights.h5", "--submodel")


# --- through the command line --------------------------------------------------------------------


def test_command_with_unregistered_classes_by_another_name(
    command: Command, tmp_path: Path, saved_vae: dict[str, tuple[Path, np.ndarray]]
):
    path, _ = saved_vae["keras.keras"]
    with zipfile.ZipFile(path) as archive:
        assert "config.json" in archive.namelist()
    shutil.copy(path, tmp_path / "best_model")
    shutil.copy(PROJECT / "my_vae.py", tmp_path)
    result = command("layers", "--model", "best_model", "--import", "my_vae")
    assert result.code == 0, result.err
    assert "conv2d" in result.out
    result = command("layers", "--model", "best_model")
    assert result.code == 2
    has(result.err, "--import my_vae")
