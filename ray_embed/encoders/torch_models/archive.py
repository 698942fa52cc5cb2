# SPDX-License-Identifier: Apache-2.0
"""Read and write archives of torch.export without running code that they hold.

torch.export.load unpickles parts of an archive, evaluates expressions that are text, loads compiled
libraries, and finds functions by any name. An archive is therefore checked before it is loaded.
"""

import ast
import io
import json
import re
import warnings
import zipfile
from collections.abc import Iterator
from typing import Any

import torch

from ray_embed.core.triton import block_triton

_EARLIER = "serialized_exported_program.json"
# Operators of PyTorch and its libraries, and what they are combined with on sizes.
_TARGET = re.compile(
    r"torch\.ops\.(aten|prims|prim|higher_order|torchvision|quantized_decomposed)\.\w+(\.\w+)?"
    r"|torch\.sym_(float|int|ite|max|min|not|sqrt|sum)"
    r"|math\.(ceil|floor|trunc)"
    r"|_operator\.(add|and_|eq|floordiv|ge|getitem|gt|le|lt|mod|mul|ne|neg|not_|or_|pow|sub|truediv)"
)
# Higher-order operators that call what they are given.
_CALLERS = re.compile(
    r"torch\.ops\.higher_order\.(call_torchbind|print|effects|with_effects|flat_)"
)
_FUNCTIONS = {
    *("Symbol", "Integer", "Float", "Add", "Mul", "Pow", "Max", "Min", "Eq", "Ne", "Ge", "Gt"),
    *(
        "Le",
        "Lt",
        "FloorDiv",
        "ModularIndexing",
        "Where",
        "PythonMod",
        "Mod",
        "CleanDiv",
        "CeilDiv",
    ),
    *("CeilToInt", "FloorToInt", "PowByNatural", "FloatPow", "FloatTrueDiv", "IntTrueDiv"),
    *("TruncToFloat", "TruncToInt", "RoundToInt", "RoundDecimal", "ToFloat", "Identity"),
}
_ARITHMETIC = (
    *(ast.Expression, ast.BinOp, ast.UnaryOp, ast.Compare, ast.Constant, ast.Name, ast.Call),
    *(ast.keyword, ast.operator, ast.unaryop, ast.cmpop, ast.Load),
)


class UnsafeArchive(Exception):  # noqa: N818 - the caller says what to do
    """An archive cannot be loaded safely. The message says why."""


def read_program(content: bytes) -> Any:
    """Return the exported program in an archive.

    Raises:
        UnsafeArchive: loading it could run code, or it was written by an early version.
        Exception: whatever PyTorch raises for a damaged archive.
    """
    _check(content)
    block_triton()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.load(io.BytesIO(content))


def write_program(program: Any) -> bytes:
    """Return the archive of an exported program."""
    sink = io.BytesIO()
    torch.export.save(program, sink)
    return sink.getvalue()


def forget_origin(program: Any) -> None:
    """Drop from a program the images and the names of the files that it was made from."""
    program.example_inputs = None
    for module in program.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            for name in ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn"):
                node.meta.pop(name, None)


def _check(content: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if _EARLIER in archive.namelist():
            raise UnsafeArchive("it was exported by a version of PyTorch before 2.8")
        for entry in archive.namelist():
            name = entry.partition("/")[2]
            if name.startswith("data/aotinductor/") or name.endswith((".so", ".cubin", ".cpp")):
                raise UnsafeArchive(f"it holds compiled code ({name})")
            if name.startswith(("data/weights/", "data/constants/")):
                _check_values(name, archive, entry)
            elif name.startswith("data/sample_inputs/"):
                _check_samples(archive.read(entry))
            elif name.startswith("models/"):
                _check_graph(json.loads(archive.read(entry)))


def _check_values(name: str, archive: zipfile.ZipFile, entry: str) -> None:
    file = name.rpartition("/")[2]
    if file.endswith(".json"):
        config = json.loads(archive.read(entry))["config"]
        for key, value in config.items():
            # Other constants are objects.
            is_tensor = str(value["path_name"]).startswith(("weight_", "tensor_"))
            if value["use_pickle"] is not False or not is_tensor:
                raise UnsafeArchive(f"it holds {key!r} as a pickle")
    elif not file.startswith(("weight_", "tensor_")) or file.endswith(".pt"):
        raise UnsafeArchive(f"it holds a pickle ({name})")


def _check_samples(content: bytes) -> None:
    if not content:
        return
    try:
        torch.load(io.BytesIO(content), weights_only=True)
    except Exception as error:
        raise UnsafeArchive("its example inputs are a pickle of more than tensors") from error


def _check_graph(model: Any) -> None:
    for key, value in _pairs(model):
        if key == "expr_str":
            _check_expression(value)
        elif key == "target" and isinstance(value, str):
            if not _TARGET.fullmatch(value) or _CALLERS.match(value):
                raise UnsafeArchive(f"its graph calls {value[:80]!r}, which is no known operator")
        elif key in ("as_custom_obj", "as_operator") and value is not None:
            raise UnsafeArchive(f"its graph holds an object ({str(value)[:80]})")


def _check_expression(text: Any) -> None:
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, TypeError, ValueError) as error:
        raise UnsafeArchive(f"it has a size that is no expression: {text!r}") from error
    for node in nodes:
        if not isinstance(node, _ARITHMETIC) or _is_odd_text(node) or _calls_unknown(node):
            raise UnsafeArchive(f"it has a size that is no arithmetic: {text[:80]!r}")


def _calls_unknown(node: ast.AST) -> bool:
    """Return whether a node is a call of anything but a known function."""
    if not isinstance(node, ast.Call):
        return False
    return not (isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS)


def _is_odd_text(node: ast.AST) -> bool:
    """Return whether a node is text that is no name: sympy evaluates arguments that are text."""
    text = node.value if isinstance(node, ast.Constant) else None
    return isinstance(text, (str, bytes)) and not re.fullmatch(r"\w+", str(text))


def _pairs(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield all keys with their values in a JSON document."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            yield from item.items()
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)
