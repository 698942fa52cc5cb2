# SPDX-License-Identifier: Apache-2.0
"""Finds the classes and functions that a stored model names, in the modules given by --import.

Keras loads a model with classes of the user's own if these are registered, or given to it by name
as `custom_objects`. Many modules register nothing, so the names stored in the file are looked up.
A file decides which names are asked for, and with which arguments classes are made, so nothing is
given to Keras but what the modules define for it: classes that it can make from a configuration,
and, where the file names a function, their own functions.
"""

import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray_embed.errors import InputError

Config = Any
Objects = dict[str, Any]

_KERAS = ("keras", "tf_keras")
# Modules in a file that no one can import again: a script's own, and none.
_NOWHERE = ("", "builtins", "__main__")

# Settings of layers whose values are words, none of which is the name of a function.
_WORDS = {
    *("name", "class_name", "registered_name", "module", "dtype", "padding", "data_format"),
    *("interpolation", "fill_mode", "output_mode", "mode", "build_config", "layer_name"),
}
# Where Keras keeps its own functions that a configuration may name.
_FUNCTIONS = ("activations", "initializers", "regularizers", "constraints", "losses", "metrics")


@dataclass(frozen=True)
class Reference:
    """A class or function that a file names, and the module that it came from, if the file says."""

    name: str
    module: str
    is_function: bool = False

    @property
    def bare(self) -> str:
        """The name without the package that it was registered for."""
        return self.name.rpartition(">")[2]


def find_custom_objects(
    configs: Sequence[Config], imports: Sequence[str], family: str, given: str
) -> Objects:
    """Return what Keras needs beside its own to load a model, by the names in the file.

    Args:
        configs: the stored configuration, parsed.
        imports: the modules given by ``--import``, which have been imported.
        family: the Keras that loads it, `keras` or `tf_keras`.
        given: the option and value that named the file, for errors.

    Raises:
        InputError: a module has several classes of a name, or the file would call a function.
    """
    named = [
        *references(configs),
        *(Reference(name, "", is_function=True) for name in sorted(_named_functions(configs))),
    ]
    # What the user's module has goes before a layer of Keras that happens to be called the same.
    found = _layers_of_applications(family)
    found = {one.name: found[one.name] for one in named if one.name in found}
    for reference in named if imports else ():
        value = _look_up(reference, imports, family)
        if value is not None:
            found[reference.name] = value
    _refuse_calls(configs, found, family, given)
    return found


def references(configs: Sequence[Config]) -> list[Reference]:
    """Return the classes and functions that are not known as Keras' own, in the file's order."""
    found: dict[Reference, None] = {}
    for item in _items(configs):
        name = item.get("registered_name", item["class_name"])
        if item["class_name"] == "function":
            if isinstance(item["config"], str):
                found[Reference(item["config"], _module(item), is_function=True)] = None
        elif isinstance(name, str) and not name.startswith("__"):
            found[Reference(name, _module(item))] = None
    return list(found)


def missing_objects(configs: Sequence[Config], objects: Objects, family: str) -> list[Reference]:
    """Return what the file names that is neither Keras' own nor registered nor in `objects`."""
    library = sys.modules[family]
    return [
        reference
        for reference in references(configs)
        if reference.name not in objects
        and not library.saving.get_registered_object(reference.name)
        and not _is_own(reference, family)
    ]


def describe_missing(missing: Sequence[Reference], imports: Sequence[str], family: str) -> str:
    """Say which classes and functions are missing, and how to name the module that has them."""
    known = [reference.module for reference in missing if reference.module not in _NOWHERE]
    names = ", ".join(
        f"{one.bare!r}" + (f" (of {one.module})" if one.module in known else "") for one in missing
    )
    kinds = {one.is_function for one in missing}
    what = {
        (True,): "function",
        (False,): "class",
        (False, True): "classes and functions",
    }[tuple(sorted(kinds))]
    holds = f"it holds the {what} {names}"
    for one in missing:
        for module, value in _values(imports, one.bare):
            other = _family(value)
            if other not in ("", family):
                return (
                    f"{holds}, for {family}; {one.bare!r} in {module} is one for {other}: name a "
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
    """Yield the stored objects: what has a class and a configuration."""
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
    """Return the words in a configuration that may name a function, as older formats do."""
    if isinstance(value, str):
        return {value}
    if isinstance(value, dict):
        parts = [_named_functions(item) for key, item in value.items() if key not in _WORDS]
    elif isinstance(value, (list, tuple)):
        # Lists of texts are the names of layers that a layer is connected to.
        parts = [_named_functions(item) for item in value if not isinstance(item, str)]
    else:
        parts = []
    return set().union(*parts)


# --- what the user's modules have ----------------------------------------------------------------


def _look_up(reference: Reference, imports: Sequence[str], family: str) -> Any:
    """Return what a module has for a name in the file, None where there is nothing.

    Raises:
        InputError: it has several, and the file does not say which.
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
            f"--import {', '.join(imports)}: it has several things called {reference.bare!r} "
            f"({places}); name the module that has the one the file means with --import"
        )
    return next(iter(several.values()), None)


def _values(imports: Sequence[str], name: str) -> list[tuple[str, Any]]:
    """Return what the modules call `name`, and those below them that have been imported."""
    below = tuple(f"{module}." for module in imports)
    names = [*imports, *(m for m in list(sys.modules) if m.startswith(below) and m not in imports)]
    modules = [(one, sys.modules.get(one)) for one in names]
    # A package may load its parts late, and then runs its code for a name that it lacks.
    found = [(one, vars(module).get(name)) for one, module in modules if module is not None]
    return [(one, value) for one, value in found if value is not None]


def _fits(value: Any, reference: Reference, imports: Sequence[str], family: str) -> bool:
    """Whether a module's value may be given to Keras for what the file names."""
    package = str(getattr(value, "__module__", "")).partition(".")[0]
    if reference.is_function:
        # Not a function that the module has from elsewhere: that may do anything.
        return inspect.isfunction(value) and package in {m.partition(".")[0] for m in imports}
    return (
        inspect.isclass(value)
        and hasattr(value, "from_config")
        and package not in _KERAS
        and _family(value) in ("", family)
    )


def _family(value: Any) -> str:
    """Return the Keras that a class derives from, an empty string for any other value."""
    for base in getattr(value, "__mro__", ()):
        package: str = base.__module__.partition(".")[0]
        if package in _KERAS:
            return package
    return ""


def _refuse_calls(configs: Sequence[Config], objects: Objects, family: str, given: str) -> None:
    """Refuse a file that gives arguments to a function: Keras would call it with them."""
    library = sys.modules[family]
    for item in _items(configs):
        for key in ("class_name", "registered_name"):
            name = item.get(key)
            if not isinstance(name, str) or item["class_name"] == "function":
                continue
            value = objects.get(name) or library.saving.get_registered_object(name)
            if inspect.isroutine(value):
                raise InputError(
                    f"{given}: it names the function {name!r} as a class, and such a file is not "
                    "loaded; build the model in a function of yours and give --model "
                    "module:callable with --weights"
                )


# --- what Keras has itself -----------------------------------------------------------------------


def _layers_of_applications(family: str) -> Objects:
    """Return the layers that Keras' applications define, which not all of its readers know."""
    return {
        name: value
        for module in _modules_of(f"{family}.src.applications.")
        for name, value in vars(module).items()
        if inspect.isclass(value) and value.__module__ == module.__name__
    }


def _is_own_function(reference: Reference, family: str) -> bool:
    """Whether a function is Keras' own by its name, unless the file says that it is the user's."""
    if not reference.is_function or reference.module not in _NOWHERE:
        return False
    library = sys.modules[family]
    return any(hasattr(getattr(library, module), reference.name) for module in _FUNCTIONS)


def _is_own(reference: Reference, family: str) -> bool:
    return _is_own_function(reference, family) or any(
        reference.name in vars(module) for module in _modules_of(f"{family}.src.")
    )


def _modules_of(start: str) -> list[Any]:
    return [m for name, m in list(sys.modules.items()) if name.startswith(start) and m is not None]
