# SPDX-License-Identifier: Apache-2.0
"""Weights of every format into models of both Keras: the outputs must be those of the source."""

import os
import shutil
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
keras = pytest.importorskip("keras")
tf_keras = pytest.importorskip("tf_keras")
import h5py  # noqa: E402
import tensorflow as tf  # noqa: E402

from ray_embed.encoders.loaded_model import LoadedModel, get_weights, set_weights  # noqa: E402
from ray_embed.encoders.weights.checkpoint_reader import find_checkpoint  # noqa: E402
from ray_embed.encoders.weights.load import load_weights  # noqa: E402
from ray_embed.errors import InputError  # noqa: E402

LIBRARIES = {"keras3": keras, "tf_keras": tf_keras}
RNG = np.random.default_rng(0)
IMAGES = RNG.random((3, 8, 8, 3), dtype=np.float32)


@pytest.fixture(params=LIBRARIES)
def target(request):
    return LIBRARIES[request.param]


# --- models, the same in both libraries ----------------------------------------------------------


def functional(k):
    layers = k.layers
    image = layers.Input((8, 8, 3))
    x = layers.Normalization()(image)
    x = layers.Conv2D(4, 3, name="first")(x)
    x = layers.BatchNormalization()(x)
    x = layers.DepthwiseConv2D(2)(x)
    x = layers.Dropout(0.1)(x)
    x = layers.SeparableConv2D(4, 2)(x)
    x = layers.PReLU()(x)
    x = layers.Conv2DTranspose(4, 2)(x)
    x = layers.GroupNormalization(2)(x)
    x = layers.Concatenate()([layers.Conv2D(4, 1)(x), layers.Conv2D(4, 1)(x)])
    return k.Model(image, layers.LayerNormalization()(layers.GlobalAveragePooling2D()(x)))


def sequential(k):
    layers = k.layers
    return k.Sequential(
        [
            layers.Input((8, 8, 3)),
            layers.Rescaling(2.0),
            layers.RandomFlip(),
            layers.Conv2D(4, 3),
            layers.BatchNormalization(),
            layers.Flatten(),
            layers.Dense(3),
            layers.Dense(3),
        ]
    )


def nested(k):
    layers = k.layers
    image = layers.Input((8, 8, 3))
    inner_image = layers.Input((6, 6, 4))
    inner = k.Model(inner_image, layers.BatchNormalization()(layers.Conv2D(2, 2)(inner_image)))
    head = k.Sequential([layers.Input((2,)), layers.Dense(3), k.Sequential([layers.Dense(3)])])
    x = inner(layers.Conv2D(4, 3)(image))
    return k.Model(image, head(layers.GlobalAveragePooling2D()(x)))


def recurrent(k):
    layers = k.layers
    image = layers.Input((8, 8, 3))
    x = layers.TimeDistributed(layers.Conv1D(4, 2))(image)
    x = layers.Reshape((8, 28))(x)
    x = layers.Bidirectional(layers.LSTM(3, return_sequences=True))(x)
    x = layers.MultiHeadAttention(2, 3)(x, x)
    x = layers.EinsumDense("abc,cd->abd", output_shape=(None, 4), bias_axes="d")(x)
    x = layers.RNN(layers.GRUCell(3), return_sequences=True)(x)
    return k.Model(image, layers.GRU(3)(x))


def stacked(k):
    image = k.layers.Input((8, 8, 3))
    x = k.layers.Reshape((8, 24))(image)
    cells = [k.layers.GRUCell(3), k.layers.LSTMCell(3)]
    return k.Model(image, k.layers.GRU(3)(k.layers.RNN(cells, return_sequences=True)(x)))


def subclassed(k):
    layers = k.layers

    class Scale(layers.Layer):
        def build(self, shape):
            self.factor = self.add_weight(name="scale", shape=(shape[-1],))
            super().build(shape)

        def call(self, x):
            return x * self.factor

    class Net(k.Model):
        def __init__(self):
            super().__init__()
            self.conv = layers.Conv2D(4, 3)
            self.norm = layers.BatchNormalization()
            self.scale = Scale()
            self.pool = layers.GlobalAveragePooling2D()
            self.blocks = [layers.Dense(4), layers.Dense(4)]
            self.heads = {"out": k.Sequential([layers.Dense(3), layers.Dense(2)])}
            self.offset = self.add_weight(name="offset_weight", shape=(2,))
            self.colours = layers.Embedding(3, 2)

        def call(self, x):
            x = self.pool(self.scale(self.norm(self.conv(x))))
            for block in self.blocks:
                x = block(x)
            return self.heads["out"](x) + self.offset + self.colours(tf.constant([1]))

    net = Net()
    net(tf.zeros((1, 8, 8, 3)))
    return net


def dense(k, units=3, layers=2, size=4, **options):
    return k.Sequential(
        [k.layers.Input((size,)), *(k.layers.Dense(units, **options) for _ in range(layers))]
    )


BUILDERS = [functional, sequential, nested, recurrent, stacked, subclassed]


# --- helpers -------------------------------------------------------------------------------------


def randomize(model):
    for variable in model.weights:
        if np.issubdtype(np.asarray(variable).dtype, np.floating):
            variable.assign(0.5 + RNG.random(variable.shape, dtype=np.float32))
    for layer in model.layers:
        if hasattr(layer, "adapt_mean"):
            layer.finalize_state()
    return model


def outputs(model):
    shape = tuple((getattr(model, "inputs", None) and model.inputs[0].shape) or IMAGES.shape)
    data = IMAGES if len(shape) == 4 else np.ones((2, shape[-1]), np.float32)
    return np.asarray(model(data, training=False))


def agree(model, expected):
    np.testing.assert_allclose(outputs(model), expected, rtol=1e-5, atol=1e-5)


def values(model):
    return [np.array(variable) for variable in model.weights]


def refused(model, path, *words, outer=None):
    """The load is refused, with these words and the file's name, and nothing has changed."""
    before = values(model)
    with pytest.raises(InputError) as error:
        load_weights(model, str(path), outer)
    for word in (str(path), *words):
        assert word in str(error.value)
    for old, new in zip(before, values(model), strict=True):
        np.testing.assert_array_equal(old, new)
    return str(error.value)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Saves each model once: (expected outputs, path) by builder, library and format."""
    folder = tmp_path_factory.mktemp("saved")
    models, paths = {}, {}

    def save(builder, library, form):
        key = builder.__name__, library.__name__
        if key not in models:
            model = randomize(builder(library))
            models[key] = model, outputs(model)
        model, expected = models[key]
        path = folder / f"{'_'.join(key)}{form}"
        if (key, form) not in paths:
            paths[key, form] = path
            if form == "/":
                model.save_weights(f"{path}/")
            elif form == "-tf":
                tf.train.Checkpoint(model=model).write(str(path))
            elif form in (".keras", "-whole.h5"):
                model.save(str(path))
            else:
                model.save_weights(str(path))
        return expected, str(path)

    return save


# --- every format, every kind of model, both targets ---------------------------------------------


@pytest.mark.parametrize("builder", BUILDERS)
def test_keras2_tensorflow_format(saved, builder, target):
    expected, path = saved(builder, tf_keras, "/")
    model = builder(target)
    load_weights(model, path)
    agree(model, expected)


@pytest.mark.parametrize("builder", [functional, sequential, nested, recurrent])
def test_checkpoint_written_by_keras3(saved, builder, target):
    expected, path = saved(builder, keras, "-tf")
    model = builder(target)
    load_weights(model, path)
    agree(model, expected)


@pytest.mark.parametrize(
    ("builder", "word"), [(subclassed, "save the trained model again"), (stacked, "no value")]
)
def test_keras3_checkpoint_lacks_lists_of_layers(saved, builder, word):
    # tf.train.Checkpoint does not see the lists and dicts of a Keras 3 layer.
    _, path = saved(builder, keras, "-tf")
    refused(builder(keras), path, word)


@pytest.mark.parametrize("form", [".weights.h5", ".h5", ".keras"])
@pytest.mark.parametrize("builder", BUILDERS)
def test_files_of_keras2(saved, builder, form, target):
    expected, path = saved(builder, tf_keras, form)
    model = builder(target)
    load_weights(model, path)
    agree(model, expected)


@pytest.mark.parametrize("form", [".weights.h5", "-whole.h5", ".keras"])
@pytest.mark.parametrize("builder", BUILDERS)
def test_files_of_keras3(saved, builder, form):
    expected, path = saved(builder, keras, form)
    model = builder(keras)
    load_weights(model, path)
    agree(model, expected)


@pytest.mark.parametrize("form", [".weights.h5", "-whole.h5", ".keras"])
def test_files_of_keras3_into_tf_keras(saved, form):
    expected, path = saved(functional, keras, form)
    model = functional(tf_keras)
    load_weights(model, path)
    agree(model, expected)


@pytest.mark.parametrize("form", [".weights.h5", ".keras"])
def test_attribute_layout_of_keras3_is_unknown_to_tf_keras(saved, form):
    _, path = saved(subclassed, keras, form)
    refused(subclassed(tf_keras), path, "no value", "--submodel")


def test_the_layout_counts_not_the_ending(saved, target, tmp_path):
    expected, old = saved(nested, tf_keras, ".h5")
    _, new = saved(nested, tf_keras, ".weights.h5")
    shutil.copy(old, tmp_path / "old.weights.h5")
    shutil.copy(new, tmp_path / "new.h5")
    for name in ("old.weights.h5", "new.h5"):
        model = nested(target)
        load_weights(model, str(tmp_path / name))
        agree(model, expected)


# --- where the checkpoint is ---------------------------------------------------------------------


def test_prefix_and_folder_forms(tmp_path):
    model = dense(tf_keras)
    model.save_weights(f"{tmp_path}/a/")
    assert find_checkpoint(f"{tmp_path}/a") == f"{tmp_path}/a/"
    assert find_checkpoint(f"{tmp_path}/a/") == f"{tmp_path}/a/"
    model.save_weights(f"{tmp_path}/b/one")
    assert find_checkpoint(f"{tmp_path}/b/one") == f"{tmp_path}/b/one"
    assert find_checkpoint(f"{tmp_path}/b") == f"{tmp_path}/b/one"
    model.save_weights(f"{tmp_path}/b/two")
    assert find_checkpoint(f"{tmp_path}/b") == f"{tmp_path}/b/two"


def test_moved_folder(tmp_path, target):
    source = randomize(dense(tf_keras))
    manager = tf.train.CheckpointManager(
        tf.train.Checkpoint(model=source), f"{tmp_path}/before", max_to_keep=3
    )
    manager.save()
    expected = outputs(source)
    manager.save()
    state = tmp_path / "before" / "checkpoint"
    state.write_text(state.read_text().replace('"ckpt-', f'"{tmp_path}/before/ckpt-'))
    shutil.move(tmp_path / "before", tmp_path / "after")
    model = dense(target)
    load_weights(model, f"{tmp_path}/after")
    agree(model, expected)


def test_folder_without_state_file(tmp_path):
    model = dense(tf_keras)
    model.save_weights(f"{tmp_path}/w/one")
    (tmp_path / "w" / "checkpoint").unlink()
    assert find_checkpoint(f"{tmp_path}/w") == f"{tmp_path}/w/one"
    model.save_weights(f"{tmp_path}/w/two")
    (tmp_path / "w" / "checkpoint").write_bytes(b"\xff nonsense")
    refused(model, tmp_path / "w", "several checkpoints", "w/one", "w/two")


def test_folder_with_a_difficult_name(tmp_path):
    source = randomize(dense(tf_keras))
    folder = tmp_path / "a [1] *?é"
    folder.mkdir()
    dense(tf_keras).save_weights(f"{folder}/older")
    source.save_weights(f"{folder}/ä.one")
    source.save(str(folder / "m.keras"))
    for path in (folder, folder / "ä.one", folder / "m.keras"):
        model = dense(keras)
        load_weights(model, str(path))
        agree(model, outputs(source))


def test_nothing_there(tmp_path):
    model = dense(keras)
    refused(model, tmp_path / "absent", "no such file", ".weights.h5")
    refused(model, tmp_path, "no checkpoint", ".weights.h5")
    (tmp_path / "x.pth").write_bytes(b"abc")
    refused(model, tmp_path / "x.pth", "not a file of weights", ".weights.h5")


# --- what does not belong to the model -----------------------------------------------------------

FORMS = ["/", ".weights.h5", ".h5"]


@pytest.fixture(scope="module")
def dense_saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dense")
    for form in FORMS:
        dense(tf_keras).save_weights(f"{folder}/d{form}")
    return folder


@pytest.mark.parametrize("form", FORMS)
def test_other_shape(dense_saved, form, target):
    refused(dense(target, units=5), f"{dense_saved}/d{form}", "kernel", "(4, 5)", "(4, 3)", "--sub")


@pytest.mark.parametrize("form", FORMS)
def test_too_few_layers_in_the_file(dense_saved, form, target):
    refused(dense(target, layers=3), f"{dense_saved}/d{form}", "kernel", "no value", "--submodel")


@pytest.mark.parametrize("form", FORMS)
def test_too_many_layers_in_the_file(dense_saved, form, target):
    refused(dense(target, layers=1), f"{dense_saved}/d{form}", "layers", "--submodel")


@pytest.mark.parametrize("form", FORMS)
def test_a_value_that_the_layer_does_not_want(dense_saved, form, target):
    refused(dense(target, use_bias=False), f"{dense_saved}/d{form}", "--submodel")


def test_lists_of_other_lengths(tmp_path, target):
    def net(k, count):
        class Net(k.Model):
            def __init__(self):
                super().__init__()
                self.blocks = [k.layers.Dense(4) for _ in range(count)]

            def call(self, x):
                for block in self.blocks:
                    x = block(x)
                return x

        model = Net()
        model(tf.zeros((1, 4)))
        return model

    net(tf_keras, 2).save_weights(f"{tmp_path}/w")
    refused(net(target, 3), f"{tmp_path}/w", "no value", "(4, 4)", "4 of 6")
    refused(net(target, 1), f"{tmp_path}/w", "more layers", "blocks/1/")


def test_keras_leaves_variables_untouched(dense_saved, tmp_path):
    shutil.copy(dense_saved / "d.weights.h5", tmp_path / "d.weights.h5")

    class Dense(keras.layers.Dense):
        def load_own_variables(self, store):
            pass

    model = keras.Sequential([keras.layers.Input((4,)), Dense(3), keras.layers.Dense(3)])
    refused(model, tmp_path / "d.weights.h5", "kernel", "(4, 3)", "no value")


def test_model_without_variables(dense_saved):
    with pytest.raises(InputError, match="no variables"):
        load_weights(keras.Sequential([keras.layers.Dense(3)]), f"{dense_saved}/d/")


# --- damage --------------------------------------------------------------------------------------


def test_damaged_checkpoints(tmp_path):
    source, model = dense(tf_keras), dense(keras)
    for name in ("index", "data", "gone"):
        source.save_weights(f"{tmp_path}/{name}")
    (tmp_path / "index.index").write_bytes(b"not an index at all" * 20)
    refused(model, tmp_path / "index", "not a readable checkpoint")
    data = tmp_path / "data.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:40])
    refused(model, tmp_path / "data")
    (tmp_path / "gone.data-00000-of-00001").unlink()
    refused(model, tmp_path / "gone")


def test_flipped_bit_in_a_value(tmp_path):
    randomize(dense(tf_keras)).save_weights(f"{tmp_path}/w")
    data = tmp_path / "w.data-00000-of-00001"
    content = bytearray(data.read_bytes())
    content[2] ^= 1
    data.write_bytes(bytes(content))
    refused(dense(keras), tmp_path / "w", "damaged")


@pytest.mark.parametrize("name", ["d.weights.h5", "d.h5", "d.keras"])
def test_damaged_files(tmp_path, name, target):
    source = dense(tf_keras, units=40)
    path = tmp_path / name
    (source.save if name == "d.keras" else source.save_weights)(str(path))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refused(dense(target, units=40), path, "not a readable")
    path.write_bytes(b"nonsense")
    refused(dense(target, units=40), path, "not a readable")


def test_keras_zip_without_weights(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    refused(dense(keras), tmp_path / "x.keras", "model.weights.h5")


def test_h5_of_something_else(tmp_path, target):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["data"] = np.zeros(3)
    refused(dense(target), tmp_path / "x.h5", "kernel", "no value")


def test_name_based_checkpoint(tmp_path):
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        tf.compat.v1.get_variable("dense/kernel", (4, 3))
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.train.Saver().save(session, f"{tmp_path}/v1")
    refused(dense(keras), tmp_path / "v1", "name-based", "save_weights")


# --- optimizers, sub-trees, outer models ---------------------------------------------------------


@pytest.mark.parametrize("form", ["/", ".weights.h5", ".keras"])
def test_optimizer_slots(tmp_path, form, target):
    source = dense(tf_keras)
    source.compile("adam", "mse", metrics=["mae"])
    source.fit(np.ones((2, 4)), np.ones((2, 3)), verbose=0)
    path = f"{tmp_path}/w{form}"
    (source.save if form == ".keras" else source.save_weights)(path)
    model = dense(target)
    load_weights(model, path)
    agree(model, outputs(source))


def tracking(k):
    """A model that keeps a metric and an optimizer as attributes, as custom train steps do."""

    class Tracking(k.Model):
        def __init__(self):
            super().__init__()
            self.dense = k.layers.Dense(3)
            self.tracker = k.metrics.Mean()
            self.my_optimizer = k.optimizers.Adam()

        def call(self, x):
            return self.dense(x)

    model = Tracking()
    model(IMAGES)
    return model


@pytest.mark.parametrize("form", ["/", ".weights.h5", "-k3.weights.h5"])
def test_metrics_and_optimizers_as_attributes(tmp_path, form):
    source = randomize(tracking(keras if "k3" in form else tf_keras))
    source.my_optimizer.build(source.trainable_variables)
    source.save_weights(f"{tmp_path}/w{form}")
    model = tracking(keras)
    load_weights(model, f"{tmp_path}/w{form}")
    agree(model, outputs(source))


@pytest.mark.parametrize("root", ["model", "net"])
def test_checkpoint_with_root_name_and_old_optimizer(tmp_path, root, target):
    source = randomize(subclassed(tf_keras))
    optimizer = tf_keras.optimizers.legacy.Adam()
    source.compile(optimizer, "mse")
    source.fit(IMAGES, np.ones((3, 2)), verbose=0)
    path = tf.train.Checkpoint(**{root: source, "optimizer": optimizer}).save(f"{tmp_path}/c")
    model = subclassed(target)
    load_weights(model, path)
    agree(model, outputs(source))


def test_saved_model_variables(tmp_path, target):
    source = randomize(functional(tf_keras))
    source.save(f"{tmp_path}/m", save_format="tf")
    model = functional(target)
    load_weights(model, f"{tmp_path}/m/variables/variables")
    agree(model, outputs(source))


def coder(k):
    """A subclassed auto-encoder of two halves that no shape tells apart."""

    class Coder(k.Model):
        def __init__(self):
            super().__init__()
            self.backward_model = dense(k, units=4)
            self.forward_model = dense(k, units=4)

        def call(self, x):
            return self.backward_model(self.forward_model(x))

    model = Coder()
    model(tf.zeros((1, 4)))
    return model


@pytest.mark.parametrize("wrapped", [False, True])
def test_submodel_of_an_outer_checkpoint(tmp_path, target, wrapped):
    source = randomize(coder(tf_keras))
    path = f"{tmp_path}/w"
    if wrapped:
        tf.train.Checkpoint(model=source).write(path)
    else:
        source.save_weights(path)
    expected = outputs(source.forward_model)
    for outer in (coder(target), SimpleNamespace(forward_model=dense(target, units=4))):
        load_weights(outer.forward_model, path, outer)
        agree(outer.forward_model, expected)
    # Without the attribute's name either half could be meant.
    refused(dense(target, units=4), path, "more than one place", "forward_model", "backward_model")


def test_submodel_of_an_outer_h5(tmp_path, target):
    source = randomize(coder(tf_keras))
    for form in (".weights.h5", ".h5"):
        source.save_weights(f"{tmp_path}/w{form}")
        outer = coder(target)
        load_weights(outer.forward_model, f"{tmp_path}/w{form}", outer)
        agree(outer.forward_model, outputs(source.forward_model))
    source.forward_model.save_weights(f"{tmp_path}/half.h5")
    outer = coder(target)
    untouched = values(outer.backward_model)
    load_weights(outer.forward_model, f"{tmp_path}/half.h5", outer)
    agree(outer.forward_model, outputs(source.forward_model))
    np.testing.assert_array_equal(untouched[0], values(outer.backward_model)[0])


def sliced(k):
    """A functional auto-encoder; the encoder is a part of its graph, not a layer of it."""
    image = k.layers.Input((4,))
    code = k.layers.Dense(3)(image)
    whole = k.Model(image, k.layers.Dense(4)(code))
    return SimpleNamespace(whole=whole, forward_model=k.Model(image, code))


@pytest.mark.parametrize("form", FORMS)
def test_weights_of_the_whole_model_only(tmp_path, form, target):
    source = sliced(tf_keras)
    randomize(source.whole)
    source.whole.save_weights(f"{tmp_path}/w{form}")
    outer = sliced(target)
    load_weights(outer.forward_model, f"{tmp_path}/w{form}", outer)
    agree(outer.forward_model, outputs(source.forward_model))
    if form == "/":  # an attribute set on a functional model counts as a layer in Keras 2's h5
        outer = sliced(target)
        outer.whole.forward_model = outer.forward_model
        load_weights(outer.forward_model, f"{tmp_path}/w{form}", outer.whole)
        agree(outer.forward_model, outputs(source.forward_model))
    refused(sliced(target).forward_model, f"{tmp_path}/w{form}", "--submodel")
    # A whole model of which only the encoder is in the file.
    source.forward_model.save_weights(f"{tmp_path}/half{form}")
    outer = sliced(target)
    load_weights(outer.forward_model, f"{tmp_path}/half{form}", outer)
    agree(outer.forward_model, outputs(source.forward_model))
    refused(outer.whole, f"{tmp_path}/half{form}", "no value", outer=outer)


def test_nothing_changes_when_neither_fits(tmp_path, target):
    dense(tf_keras, units=7).save_weights(f"{tmp_path}/w.h5")
    dense(tf_keras, units=7).save_weights(f"{tmp_path}/w")
    for name in ("w", "w.h5"):
        outer = coder(target)
        before = values(outer)
        refused(outer.forward_model, tmp_path / name, "(4, 4)", "(4, 7)", outer=outer)
        for old, new in zip(before, values(outer), strict=True):
            np.testing.assert_array_equal(old, new)


# --- order of layers -----------------------------------------------------------------------------


def branches(k, first, second, detour):
    """Two branches of equal shapes; a detour makes the first one longer and so comes first."""
    image = k.layers.Input((4,))
    a = k.layers.Dense(4, name=first)(image)
    b = k.layers.Dense(4, name=second)(image)
    for _ in range(detour):
        b = k.layers.Activation("linear")(b)
    return k.Model(image, k.layers.Concatenate()([a, b]))


def test_both_keras_order_layers_alike():
    for detour in (0, 1):
        orders = [
            [layer.name for layer in branches(k, "left", "right", detour).layers if layer.weights]
            for k in (keras, tf_keras)
        ]
        assert orders[0] == orders[1]


@pytest.mark.parametrize("names", [("left", "right"), ("dense_70", "dense_71")])
def test_branches_of_equal_shape_go_by_name(tmp_path, names):
    # gelu, for one, is several operations in Keras 2 and one in Keras 3: other depths, other order.
    source = randomize(branches(tf_keras, *names, detour=1))
    source.save_weights(f"{tmp_path}/w")
    model = branches(keras, *names, detour=0)
    load_weights(model, f"{tmp_path}/w")
    agree(model, outputs(source))


def test_branches_of_unknown_names_go_by_position(tmp_path):
    source = randomize(branches(tf_keras, "dense_80", "dense_81", detour=1))
    source.save_weights(f"{tmp_path}/w")
    model = branches(keras, "dense_81", "dense_82", detour=1)
    load_weights(model, f"{tmp_path}/w")
    agree(model, outputs(source))


def test_layer_beside_the_graph(tmp_path, target):
    def net(k):
        class Net(k.Model):
            def __init__(self):
                image = k.layers.Input((4,))
                super().__init__(image, k.layers.Dense(4)(image))
                self.extra = k.layers.Dense(4)
                self.extra.build((None, 4))

        return Net()

    source = randomize(net(tf_keras))
    source.save_weights(f"{tmp_path}/w")
    model = net(target)
    load_weights(model, f"{tmp_path}/w")
    agree(model, outputs(source))
    np.testing.assert_array_equal(np.asarray(model.extra.kernel), np.asarray(source.extra.kernel))


@pytest.mark.parametrize("form", [".h5", "-k3-whole.h5", ".weights.h5", "/"])
def test_other_layers_frozen_than_when_saved(tmp_path, form, target):
    def net(k, frozen):
        layers = k.layers
        inner = [layers.Dense(4), layers.BatchNormalization(), layers.Dense(4)]
        inner += [layers.BatchNormalization()]
        inner[0].trainable = inner[1].trainable = not frozen
        return k.Sequential(
            [layers.Input((4,)), k.Sequential([layers.Input((4,)), *inner]), layers.Dense(2)]
        )

    source = randomize(net(keras if "k3" in form else tf_keras, frozen=True))
    (source.save if "whole" in form else source.save_weights)(f"{tmp_path}/w{form}")
    model = net(target, frozen=False)
    load_weights(model, f"{tmp_path}/w{form}")
    agree(model, outputs(source))


def test_half_precision_model(tmp_path):
    source = randomize(dense(tf_keras))
    source.save_weights(f"{tmp_path}/w")
    model = dense(keras, dtype="bfloat16")
    load_weights(model, f"{tmp_path}/w")
    np.testing.assert_allclose(
        np.asarray(model(np.ones((2, 4)))).astype(np.float32), outputs(source), rtol=0.05
    )


# --- values without a file -----------------------------------------------------------------------


def test_normalization_computes_with_the_values_it_is_given(target):
    def net():
        image = target.layers.Input((8, 8, 3))
        normalization = target.layers.Normalization()
        x = target.layers.Conv2D(4, 3)(normalization(image))
        return normalization, target.Model(image, target.layers.GlobalAveragePooling2D()(x))

    def loaded(model):
        return LoadedModel(call=model, input_shape=(8, 8, 3), model=model)

    normalization, source = net()
    normalization.adapt(5 + 2 * IMAGES)
    _, model = net()
    model(IMAGES)
    set_weights(loaded(model), get_weights(loaded(source)))
    agree(model, outputs(source))


def test_a_signature_has_no_values_to_set():
    set_weights(LoadedModel(call=lambda images: images, input_shape=(8, 8, 3)), ())
