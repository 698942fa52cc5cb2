# SPDX-License-Identifier: Apache-2.0
"""Let TensorFlow compute the values in a graph that do not depend on its input."""

from collections.abc import Sequence
from typing import Any

# TensorFlow skips what belongs to the branch of a condition that is not taken, or to a loop.
_BRANCHES = {"Enter", "Switch", "_SwitchN"}
# These attributes keep a call, a loop or a condition as it is, or turn it into branches.
_MARKS = ("_XlaMustCompile", "_noinline", "_lower_using_switch_merge")


def evaluate_constants(graph: Any, output_names: Sequence[str]) -> Any:
    """Return the graph with the operations computed that do not depend on its input.

    The operations of called functions become operations of the graph itself. A graph with branches
    is not evaluated.

    Args:
        graph: a GraphDef without variables.
        output_names: the tensors that the graph is for.
    """
    inlined = _inline_functions(graph, output_names)
    if any(node.op in _BRANCHES for node in inlined.node):
        return inlined
    for node in inlined.node:
        # Control inputs only order what has side effects.
        node.input[:] = [name for name in node.input if not name.startswith("^")]
    return _replace_constants(inlined, output_names)


def _inline_functions(graph: Any, output_names: Sequence[str]) -> Any:
    """Return the graph with the functions that it calls written out."""
    import tensorflow as tf
    from tensorflow.core.protobuf.rewriter_config_pb2 import RewriterConfig
    from tensorflow.python.grappler.tf_optimizer import OptimizeGraph

    meta = tf.compat.v1.MetaGraphDef(graph_def=graph)
    functions = meta.graph_def.library.function
    nodes = [node for function in functions for node in function.node_def]
    for item in (*meta.graph_def.node, *functions, *nodes):
        for mark in _MARKS:
            item.attr.pop(mark, None)
    # TensorFlow keeps what this collection needs.
    meta.collection_def["train_op"].node_list.value.extend(output_names)
    config = tf.compat.v1.ConfigProto()
    options = config.graph_options.rewrite_options
    options.optimizers.append("function")
    options.function_optimization = RewriterConfig.AGGRESSIVE
    options.min_graph_nodes = -1
    return OptimizeGraph(config, meta)


def _replace_constants(graph: Any, output_names: Sequence[str]) -> Any:
    """Return the graph with the values of its constant tensors, and without what computes them."""
    import tensorflow as tf

    with tf.Graph().as_default() as imported:
        tf.import_graph_def(graph, name="")
        constants = _find_constants(imported)
        with tf.compat.v1.Session() as session:
            values = session.run(constants)
    names = {tensor.name: f"{tensor.op.name}_value_{tensor.value_index}" for tensor in constants}
    for node in graph.node:
        node.input[:] = [
            names.get(name if ":" in name else f"{name}:0", name) for name in node.input
        ]
    for tensor, value in zip(constants, values, strict=True):
        node = graph.node.add(name=names[tensor.name], op="Const")
        node.attr["dtype"].type = tensor.dtype.as_datatype_enum
        node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value, tensor.dtype))
    needed = [name.partition(":")[0] for name in output_names]
    return tf.compat.v1.graph_util.extract_sub_graph(graph, needed)


def _find_constants(graph: Any) -> list[Any]:
    """Return the tensors that do not depend on the graph's input, but are used by what does."""
    constant: set[str] = set()
    used: dict[str, Any] = {}
    # Operations come after those that they depend on.
    for operation in graph.get_operations():
        if _is_constant(operation, constant):
            constant.add(operation.name)
        else:
            used |= {tensor.name: tensor for tensor in operation.inputs}
    return [
        tensor
        for tensor in used.values()
        if tensor.op.name in constant and tensor.op.type != "Const" and _is_number(tensor.dtype)
    ]


def _is_constant(operation: Any, constant: set[str]) -> bool:
    if operation.op_def.is_stateful or operation.type == "Placeholder":
        return False
    return all(tensor.op.name in constant for tensor in operation.inputs)


def _is_number(dtype: Any) -> bool:
    return bool(dtype.is_floating or dtype.is_integer or dtype.is_bool)
