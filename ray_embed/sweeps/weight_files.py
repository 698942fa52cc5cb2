# SPDX-License-Identifier: Apache-2.0
"""Find the weights that a pattern or the folder of a training stands for."""

import posixpath
import re
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from ray_embed.core.uri import get_base_name, get_parent_uri, is_uri, join_uri, redact_uri
from ray_embed.errors import InputError
from ray_embed.options import RANDOM
from ray_embed.sources.container_files import expand_braces, is_pattern
from ray_embed.storage.filesystem import Folder

# TensorFlow lists the checkpoints of a training in this file.
_STATE = "checkpoint"
_STATE_ENTRY = re.compile(r'^all_model_checkpoint_paths: "(.*)"$', re.MULTILINE)
_INDEX, _DATA = ".index", re.compile(r"\.data-\d+-of-\d+$")


def find_models(named: Iterable[str]) -> list[str]:
    """Return the models that paths, URIs and patterns stand for, in natural order.

    Raises:
        InputError: nothing matches a pattern.
    """
    return [path for name in named for path in _expand(name, "--model")]


def find_weights(named: Iterable[str]) -> list[str]:
    """Return the weights that paths, URIs, patterns and folders of checkpoints stand for.

    A folder stands for all checkpoints that its state file names.

    Raises:
        InputError: nothing matches a pattern.
    """
    found: list[str] = []
    for name in named:
        if name == RANDOM:
            found.append(name)
            continue
        for path in _join_checkpoints(_expand(name, "--weights")):
            found += _list_checkpoints(path)
    return found


def sort_naturally(names: Iterable[str]) -> list[str]:
    """Sort names so that numbers in them are in numeric order: epoch-9 before epoch-10."""

    def key(name: str) -> list[tuple[int, str]]:
        return [(int(part), "") if part.isdecimal() else (-1, part) for part in _split(name)]

    return sorted(names, key=key)


def _split(name: str) -> list[str]:
    return [part for part in re.split(r"(\d+)", name) if part]


def _expand(named: str, option: str) -> list[str]:
    if not is_pattern(named):
        return [named]
    # Without hidden files, which editors and downloads leave.
    found = [path for pattern in expand_braces(named) for path in sort_naturally(_match(pattern))]
    if not found:
        raise InputError(
            f"{option} {redact_uri(named)}: no file or folder matches; quote the pattern, and "
            "check its folder"
        )
    return list(dict.fromkeys(found))


def _match(pattern: str) -> Iterator[str]:
    """Yield the files and folders that match a pattern with wildcards."""
    if not is_uri(pattern):
        path = Path(pattern)
        root = Path(path.anchor) if path.anchor else Path()
        for found in root.glob(str(path.relative_to(path.anchor))):
            if not found.name.startswith("."):
                yield str(found)
        return
    parent, last = get_parent_uri(pattern), get_base_name(pattern)
    for info in Folder.open(parent).list_infos():
        if fnmatchcase(info.base_name, last) and not info.base_name.startswith("."):
            yield join_uri(parent, info.base_name)


def _join_checkpoints(paths: list[str]) -> list[str]:
    """Return one path for the files of each checkpoint, and all other paths as they are."""
    prefixes = {path.removesuffix(_INDEX) for path in paths if path.endswith(_INDEX)}
    joined = []
    for path in paths:
        prefix = _DATA.sub("", path).removesuffix(_INDEX)
        is_state = posixpath.basename(path) == _STATE and len(paths) > 1
        if prefix in prefixes:
            joined.append(prefix)
        elif not is_state:
            joined.append(path)
    return list(dict.fromkeys(joined))


def _list_checkpoints(path: str) -> list[str]:
    """Return the checkpoints that the state file of a folder names, or the path itself."""
    folder = Folder.open(path)
    if not folder.exists(_STATE):
        return [path]
    names = _STATE_ENTRY.findall(folder.read(_STATE).decode("utf-8", "replace"))
    # The folder may have been moved.
    found = [posixpath.basename(name.replace("\\", "/")) for name in names]
    found = [name for name in found if folder.exists(f"{name}{_INDEX}")]
    if len(found) < 2:
        return [path]
    return [join_uri(path, name) for name in found]
