# SPDX-License-Identifier: Apache-2.0
"""Find Python code in the files of Keras 2, which `tf_keras` would run even in its safe mode.

`tf_keras` also imports functions by name from any module that a file names. Only functions that the
user's code registers or provides are accepted.
"""

import json
import zipfile
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any

from ray_embed.errors import InputError

_CODE = {"Lambda", "__lambda__"}


def refuse_lambdas(
    path: Path, configs: Sequence[Any], known: Container[str] = (), imports: Sequence[str] = ()
) -> None:
    """Refuse a model file whose stored configuration has a Python Lambda.

    Args:
        path: the file, for the error.
        configs: the configurations stored in it, parsed.
        known: the names of functions that are passed to Keras.
        imports: the modules that were searched for functions, for the error.

    Raises:
        InputError: the file has a Lambda or an unknown function; the message names it.
    """
    where = f"not in {', '.join(imports)}" if imports else "not registered"
    for config in configs:
        for item in _dicts(config):
            if _is_code(item):
                config = item.get("config")
                name = (config if isinstance(config, dict) else item).get("name", "?")
                raise InputError(
                    f"--model {path}: the layer {name!r} is a Lambda, Python code stored in the "
                    "file, which is not run; build the model in a function of yours and give "
                    "--model module:callable with --weights"
                )
            function = item.get("config")
            if item.get("class_name") == "function" and not (
                (isinstance(function, str) and function in known) or _is_registered(function)
            ):
                raise InputError(
                    f"--model {path}: it uses the Python function {function!r}, which is {where}; "
                    "name the module that has it with --import"
                )


def holds_lambda(config: Any) -> bool:
    """Return whether a stored configuration has Python code, which Keras does not run."""
    return any(
        _is_nameless_code(item) or (_is_code(item) and not _is_named(item))
        for item in _dicts(config)
    )


def _is_nameless_code(item: dict[str, Any]) -> bool:
    """Return whether this is just the code of an activation: its bytes, defaults and closure."""
    code = item.get("value") if len(item) == 1 else None
    return isinstance(code, list) and len(code) == 3 and isinstance(code[0], str)


def _is_named(item: dict[str, Any]) -> bool:
    """Return whether the function of a Lambda is stored by name, not as code."""
    config = item.get("config")
    function = config.get("function") if isinstance(config, dict) else None
    return isinstance(function, dict) and function.get("class_name") == "function"


def parse_config(path: Path, text: str) -> Any:
    """Return a parsed configuration.

    Raises:
        InputError: the text is not JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"--model {path}: not a Keras model file: its configuration is not JSON: {error}"
        ) from error


def _is_code(item: dict[str, Any]) -> bool:
    # Keras finds a class by its path in a module (`layers.Lambda`), or by its registered name.
    names = (str(item.get(key)) for key in ("class_name", "registered_name"))
    return any(name.rpartition(".")[2] in _CODE for name in names) or any(
        # `function_type` and `output_shape_type` of a Lambda's configuration.
        key.endswith("_type") and value == "lambda"
        for key, value in item.items()
    )


def _is_registered(function: Any) -> bool:
    import tf_keras

    registered = isinstance(function, str) and tf_keras.saving.get_registered_object(function)
    return bool(registered)


def _dicts(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _dicts(item)


def keras_archive(path: Path) -> tuple[str, str]:
    """Return the Keras version and the configuration of a ``.keras`` file.

    Raises:
        InputError: the file is not a ``.keras`` file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            metadata = json.loads(archive.read("metadata.json"))
            return str(metadata.get("keras_version", "3")), archive.read("config.json").decode()
    except (zipfile.BadZipFile, KeyError, ValueError, OSError) as error:
        raise InputError(f"--model {path}: not a Keras model file: {error}") from error


def hdf5_model(path: Path) -> tuple[str, str]:
    """Return the Keras version and the configuration of an HDF5 file that holds a whole model.

    Raises:
        InputError: the file is not an HDF5 file, or holds only weights.
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            config = file.attrs.get("model_config")
            version = file.attrs.get("keras_version", "2")
    except OSError as error:
        raise InputError(f"--model {path}: not an HDF5 model file: {error}") from error
    if config is None:
        raise InputError(
            f"--model {path}: weights alone, no model; give the model by --model module:callable "
            f"and this file by --weights"
        )
    return _text(version), _text(config)


def saved_model_configs(path: Path) -> list[str] | None:
    """Return the layer configurations that Keras 2 stores in a SavedModel folder.

    Returns:
        The JSON texts, or None if Keras 2 did not write the folder.

    Raises:
        InputError: the configurations cannot be parsed.
    """
    file = path / "keras_metadata.pb"
    if not file.exists():
        return None
    from tf_keras.protobuf import saved_metadata_pb2

    metadata = saved_metadata_pb2.SavedMetadata()
    try:
        metadata.ParseFromString(file.read_bytes())
    except Exception as error:
        raise InputError(f"--model {path}: {file.name} cannot be parsed: {error}") from error
    return [node.metadata for node in metadata.nodes if node.metadata]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
