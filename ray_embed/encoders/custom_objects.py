# SPDX-License-Identifier: Apache-2.0
"""Find, in the modules of ``--import``, the classes and functions that a stored model names.

Keras loads a model with custom classes if these are registered, or passed to it by name as
`custom_objects`. Many modules register nothing, so the names in the file are looked up in them. The
file chooses the names and the arguments of the classes. Therefore, Keras receives only classes that
it can create from a configuration and, if the file names a function, functions that the modules
define.
"""

import importlib
import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray_embed.errors import InputError

Config = Any
Objects = dict[str, Any]

_KERAS = ("keras", "tf_keras")
# Modules in a file that cannot be imported again: a script, and an unknown module.
_NOT_IMPORTABLE = ("", "builtins", "__main__")

# Layer settings whose values are text, but never the name of a function.
_WORDS = {
    *("name", "class_name", "registered_name", "module", "dtype", "padding", "data_format"),
    *("interpolation", "fill_mode", "output_mode", "mode", "build_config", "layer_name"),
}
# The modules of Keras with functions that a configuration may name.
_FUNCTIONS = ("activations", "initializers", "regularizers", "constraints", "losses", "metrics")


@dataclass(frozen=True)
class Reference:
    """A class or function that a file names, and its module, empty if the file does not name it."""

    name: str
    module: str
    is_function: bool = False

    @property
    def bare(self) -> str:
        """Return the name without the package that it was registered for."""
        return self.name.rpartition(">")[2]


def find_custom_objects(
    configs: Sequence[Config], imports: Sequence[str], family: str, option: str
) -> Objects:
    """Return the custom classes and functions that Keras needs to load a model, by name.

    Args:
        configs: the stored configuration, parsed.
        imports: the modules of ``--import``, already imported.
        family: the Keras package that loads the model, `keras` or `tf_keras`.
        option: the option and value that named the file, for error messages.

    Raises:
        InputError: a module has several classes with the same name, or the file would call a
            function.
    """
    named = [
        *references(configs),
        *(Reference(name, "", is_function=True) for name in sorted(_named_functions(configs))),
    ]
    # The user's module takes precedence over a layer of Keras with the same name.
    layers = _layers_of_applications(family)
    objects = {item.name: layers[item.name] for item in named if item.name in layers}
    for reference in named if imports else ():
        value = _look_up(reference, imports, family)
        if value is not None:
            objects[reference.name] = value
    _refuse_calls(configs, objects, family, option)
    return objects


def references(configs: Sequence[Config]) -> list[Reference]:
    """Return the classes and functions that the file names, in the order of the file."""
    named: dict[Reference, None] = {}
    for item in _items(configs):
        name = item.get("registered_name", item["class_name"])
        if item["class_name"] == "function":
            if isinstance(item["config"], str):
                named[Reference(item["config"], _module(item), is_function=True)] = None
        elif isinstance(name, str) and not name.startswith("__"):
            named[Reference(name, _module(item))] = None
    return list(named)


def find_missing_objects(
    configs: Sequence[Config], objects: Objects, family: str
) -> list[Reference]:
    """Return what the file names but is neither built into Keras, registered, nor in `objects`."""
    library = importlib.import_module(family)
    return [
        reference
        for reference in references(configs)
        if reference.name not in objects
        and not library.saving.get_registered_object(reference.name)
        and not _is_own(reference, family)
    ]


def describe_missing(missing: Sequence[Reference], imports: Sequence[str], family: str) -> str:
    """Return which classes and functions are missing, and how to name their module."""
    known = [reference.module for reference in missing if reference.module not in _NOT_IMPORTABLE]
    names = ", ".join(
        f"{ref.bare!r}" + (f" (of {ref.module})" if ref.module in known else "") for ref in missing
    )
    kinds = {reference.is_function for reference in missing}
    what = {
        (True,): "function",
        (False,): "class",
        (False, True): "classes and functions",
    }[tuple(sorted(kinds))]
    holds = f"it holds the {what} {names}"
    for reference in missing:
        for module, value in _values(imports, reference.bare):
            other = _family(value)
            if other not in ("", family):
                return (
                    f"{holds}, for {family}; {reference.bare!r} in {module} is for {other}: name a "
                    f"module that has it for {family} with --import, or save the model with {other}"
                )
    if imports:
        return (
            f"{holds}, not found in {', '.join(imports)}; name the module that has what is missing "
            "with another --import"
        )
    example = known[0] if known else "MODULE"
    return f"{holds}, not Keras' own; name the module that has what is missing: --import {example}"


# --- what a file names ---------------------------------------------------------------------------


def _items(value: Any) -> Iterator[dict[str, Any]]:
    """Yield the stored objects, which have a class and a configuration."""
    if isinstance(value, dict):
        if isinstance(value.get("class_name"), str) and "config" in value:
            yield value
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _items(item)


def _module(item: Mapping[str, Any]) -> str:
    module = item.get("module")
    return module if isinstance(module, str) else ""


def _named_functions(value: Any) -> set[str]:
    """Return the strings in a configuration that may name a function, as older formats do."""
    if isinstance(value, str):
        return {value}
    if isinstance(value, dict):
        parts = [_named_functions(item) for key, item in value.items() if key not in _WORDS]
    elif isinstance(value, (list, tuple)):
        # Lists of strings are the names of connected layers.
        parts = [_named_functions(item) for item in value if not isinstance(item, str)]
    else:
        parts = []
    return set().union(*parts)


# --- what the user's modules define --------------------------------------------------------------


def _look_up(reference: Reference, imports: Sequence[str], family: str) -> Any:
    """Return the module's object for a name in the file, or None if there is none.

    Raises:
        InputError: there are several objects with that name, and the file does not name the module.
    """
    package = reference.module.partition(".")[0]
    if package in _KERAS or _is_own_function(reference, family):
        return None
    fitting = [
        (module, value)
        for module, value in _values(imports, reference.bare)
        if _fits(value, reference, imports, family)
    ]
    exact = [value for _, value in fitting if value.__module__ == reference.module]
    direct = [value for module, value in fitting if module in imports]
    several = {id(value): value for _, value in fitting}
    if exact or direct:
        return (exact or direct)[0]
    if len(several) > 1:
        places = ", ".join(sorted(value.__module__ for value in several.values()))
        raise InputError(
            f"--import {', '.join(imports)}: it has several objects called {reference.bare!r} "
            f"({places}); name the module of the one that the file means with --import"
        )
    return next(iter(several.values()), None)


def _values(imports: Sequence[str], name: str) -> list[tuple[str, Any]]:
    """Return the objects called `name` in the modules, and in their imported submodules."""
    prefixes = tuple(f"{module}." for module in imports)
    names = [
        *imports,
        *(m for m in list(sys.modules) if m.startswith(prefixes) and m not in imports),
    ]
    modules = [(key, sys.modules.get(key)) for key in names]
    # getattr would run the code of packages that import their submodules lazily.
    values = [(key, vars(module).get(name)) for key, module in modules if module is not None]
    return [(key, value) for key, value in values if value is not None]


def _fits(value: Any, reference: Reference, imports: Sequence[str], family: str) -> bool:
    """Return whether a module's value may be passed to Keras for what the file names."""
    package = str(getattr(value, "__module__", "")).partition(".")[0]
    if reference.is_function:
        # A function that the module imported from elsewhere may do anything.
        return inspect.isfunction(value) and package in {m.partition(".")[0] for m in imports}
    return (
        inspect.isclass(value)
        and hasattr(value, "from_config")
        and package not in _KERAS
        and _family(value) in ("", family)
    )


def _family(value: Any) -> str:
    """Return the Keras package that a class derives from, or an empty string for other values."""
    for base in getattr(value, "__mro__", ()):
        package: str = base.__module__.partition(".")[0]
        if package in _KERAS:
            return package
    return ""


def _refuse_calls(configs: Sequence[Config], objects: Objects, family: str, option: str) -> None:
    """Refuse a file that stores arguments for a function: Keras would call it with them."""
    library = importlib.import_module(family)
    for item in _items(configs):
        for key in ("class_name", "registered_name"):
            name = item.get(key)
            if not isinstance(name, str) or item["class_name"] == "function":
                continue
            value = objects.get(name) or library.saving.get_registered_object(name)
            if inspect.isroutine(value):
                raise InputError(
                    f"{option}: it names the function {name!r} as a class, and such a file is not "
                    "loaded; build the model in a function of yours and give --model "
                    "module:callable with --weights"
                )


# --- what Keras defines --------------------------------------------------------------------------


def _layers_of_applications(family: str) -> Objects:
    """Return the layers of Keras' applications, which some of its loaders do not find."""
    return {
        name: value
        for module in _modules_of(f"{family}.src.applications.")
        for name, value in vars(module).items()
        if inspect.isclass(value) and value.__module__ == module.__name__
    }


def _is_own_function(reference: Reference, family: str) -> bool:
    """Return whether a function is part of Keras, unless the file says that it is the user's."""
    if not reference.is_function or reference.module not in _NOT_IMPORTABLE:
        return False
    library = importlib.import_module(family)
    return any(hasattr(getattr(library, module), reference.name) for module in _FUNCTIONS)


def _is_own(reference: Reference, family: str) -> bool:
    return _is_own_function(reference, family) or any(
        reference.name in vars(module) for module in _modules_of(f"{family}.src.")
    )


def _modules_of(start: str) -> list[Any]:
    # A file of Keras 2 may be the first that needs tf_keras.
    importlib.import_module(start.partition(".")[0])
    return [m for name, m in list(sys.modules.items()) if name.startswith(start) and m is not None]
