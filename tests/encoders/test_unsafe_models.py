# SPDX-License-Identifier: Apache-2.0
"""SavedModels that would read or write files, or run Python, are refused before anything runs."""

import shutil
from pathlib import Path

import pytest
import tensorflow as tf

from ray_embed.encoders import unsafe_models
from ray_embed.encoders.model_loading import load_model
from ray_embed.encoders.spec import EncoderSpec
from ray_embed.errors import InputError

IMAGES = tf.TensorSpec([None, 8, 8, 3], tf.float32)


class Encoder(tf.Module):
    """An encoder that does something else besides."""

    def __init__(self, besides):
        self.factor = tf.Variable(2.0)
        self.besides = besides

    @tf.function(input_signature=[IMAGES])
    def __call__(self, images):
        with tf.control_dependencies([self.besides()]):
            return tf.reduce_mean(images * self.factor, [1, 2])


class Table(tf.lookup.KeyValueTensorInitializer):
    """Something that loading itself runs."""

    def __init__(self, besides):
        super().__init__(["a"], [1])
        self.besides = besides

    def initialize(self, table):
        with tf.control_dependencies([self.besides()]):
            return super().initialize(table)


def writing(target):
    return lambda: tf.io.write_file(target, "x")


def branching(target):
    """Hidden in a branch of a branch."""
    return lambda: tf.cond(
        tf.random.uniform([]) < 2,
        lambda: tf.map_fn(lambda x: (tf.io.write_file(target, "x"), x)[1], tf.range(1))[0],
        lambda: 0,
    )


def printing(target):
    return lambda: tf.print("x", output_stream=f"file://{target}")


def saving(target):
    return lambda: tf.raw_ops.SaveV2(
        prefix=target, tensor_names=["x"], shape_and_slices=[""], tensors=[tf.zeros(1)]
    )


def reading(target):
    return lambda: tf.io.read_file(__file__)


def mapping(target):
    return lambda: tf.raw_ops.ImmutableConst(
        dtype=tf.uint8, shape=[4], memory_region_name=str(Path(__file__))
    )


def restoring(target):
    def restored():
        saving(target)()
        return tf.raw_ops.RestoreV2(
            prefix=target, tensor_names=["x"], shape_and_slices=[""], dtypes=[tf.float32]
        )[0]

    return restored


def python(target):
    return lambda: tf.py_function(lambda: Path(target).write_text("x") * 0.0, [], tf.float32)


def dataset(target):
    def cached():
        data = tf.data.Dataset.range(3).cache(target)
        return data.reduce(tf.constant(0, tf.int64), lambda a, b: a + b)

    return cached


def summary(target):
    def written():
        writer = tf.raw_ops.SummaryWriter()
        return tf.raw_ops.CreateSummaryFileWriter(
            writer=writer, logdir=target, max_queue=1, flush_millis=1, filename_suffix=""
        )

    return written


def spec(path):
    return EncoderSpec(model=str(path), folder=str(path.parent))


WAYS = [writing, branching, printing, saving, reading, mapping, restoring, python, dataset, summary]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("where", ["call", "loading"])
def test_operation_that_reaches_beyond_the_model(tmp_path, way, where):
    target = tmp_path / "written"
    besides = way(str(target))
    module = Encoder(besides if where == "call" else tf.no_op)
    if where == "loading":
        module.table = tf.lookup.StaticHashTable(Table(besides), 0)
    tf.saved_model.save(module, str(tmp_path / "m"), signatures=module.__call__)
    # Making the model does it too.
    for left in tmp_path.glob("written*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    with pytest.raises(InputError, match=r"reaches beyond the model.*module:callable"):
        load_model(spec(tmp_path / "m"))
    assert not list(tmp_path.glob("written*"))


@pytest.mark.parametrize("way", ["call", "object", "method"])
@pytest.mark.parametrize("what", ["SaveV2", "RestoreV2"])
def test_function_for_being_saved_or_loaded_is_used_for_that_alone(tmp_path, way, what):
    """Each SavedModel has one for each; here it is called by another, or by loading."""
    module = Encoder(tf.no_op)
    tf.saved_model.save(module, str(tmp_path), signatures=module.__call__)
    file = tmp_path / "saved_model.pb"
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    unsafe_models.refuse_unsafe_operations(tmp_path)
    graph = saved.meta_graphs[0]
    called = next(
        f.signature.name
        for f in graph.graph_def.library.function
        if what in {node.op for node in f.node_def}
    )
    if way == "call":
        caller = next(f for f in graph.graph_def.library.function if "wrapper" in f.signature.name)
        node = caller.node_def.add(name="besides", op="StatefulPartitionedCall")
        node.attr["f"].func.name = called
    elif way == "object":
        added = graph.object_graph_def.nodes.add()
        added.bare_concrete_function.concrete_function_name = called
    else:
        graph.object_graph_def.nodes.add().function.concrete_functions.append(called)
    file.write_bytes(saved.SerializeToString())
    with pytest.raises(InputError, match=what):
        unsafe_models.refuse_unsafe_operations(tmp_path)


@pytest.mark.parametrize("besides", [False, True])
def test_saved_model_of_tensorflow_1(tmp_path, besides):
    v1 = tf.compat.v1
    with v1.Session(graph=tf.Graph()) as session:
        images = v1.placeholder(tf.float32, [None, 8, 8, 3])
        factor = v1.get_variable("factor", initializer=2.0)
        features = tf.reduce_mean(images * factor, [1, 2])
        session.run(v1.global_variables_initializer())
        builder = v1.saved_model.Builder(str(tmp_path / "m"))
        if besides:
            with tf.control_dependencies([saving(str(tmp_path / "written"))()]):
                features = tf.identity(features)
        signature = v1.saved_model.predict_signature_def({"images": images}, {"y": features})
        builder.add_meta_graph_and_variables(session, ["serve"], {"serving_default": signature})
        builder.save()
    if besides:
        with pytest.raises(InputError, match="SaveV2"):
            load_model(spec(tmp_path / "m"))
    else:
        found = load_model(spec(tmp_path / "m")).call(tf.ones([1, 8, 8, 3]))
        assert found["y"].numpy().tolist() == [[2.0, 2.0, 2.0]]
