# SPDX-License-Identifier: Apache-2.0
"""Why the files that a listing names are not there: paths written otherwise than they lie."""

import functools
import itertools
import os
import unicodedata
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal

from ray_embed.core.uri import is_uri
from ray_embed.errors import InputError, StorageError
from ray_embed.sources.files import File, below, find, look_at
from ray_embed.sources.image_folder import ENDINGS
from ray_embed.storage.filesystem import Folder

_TRIED = 16
_FOLDERS = 32
_ABOVE = 3
_REQUESTS = 60
# A path as it could be meant, and what the user does about it.
_Fix = tuple[Callable[[str], str], str]


def check_files(paths: Sequence[bytes], are_there: Sequence[bool], root: str, listing: str) -> None:
    """Refuse a listing of whose files (nearly) none is there, where paths written otherwise fit.

    Args:
        paths: the first paths of the listing.
        are_there: whether there is a file, for each of them.
        root: the folder that relative paths start at.
        listing: its name, for the message.

    Raises:
        InputError: naming the first file looked for, and the fix.
    """
    # A listing of files that are partly gone is not a listing of paths written wrongly.
    if 50 * sum(are_there) > len(paths):
        return
    missing = [path for path, is_there in zip(paths, are_there, strict=True) if not is_there]
    # Not only the first ones, which may be of one class.
    some = missing[:: max(1, len(missing) // _TRIED)][:_TRIED]
    if found := _find_fix([os.fsdecode(path) for path in some], root):
        example, fix = found
        raise InputError(
            f"{listing}: {len(missing)} of its first {len(paths)} files are missing; looked first "
            f"for {_full(root, missing[0])}, but there is {example}: {fix}"
        )


def none_there(count: int, path: bytes, root: str, split: str) -> InputError:
    """Make the error for a listing of which no file is there at all."""
    return InputError(
        f"--source {split}: none of its {count} files is there; looked first for "
        f"{_full(root, path)}; relative paths start at the listing's folder"
    )


def _full(root: str, path: bytes) -> str:
    return str(below(find(root), path))


def _find_fix(paths: list[str], root: str) -> tuple[str, str] | None:
    """Give the first file found by another way to write the paths, and the fix in words."""
    # An object store answers slowly.
    is_away = is_uri(root) or any(map(is_uri, paths))
    for rewrite, fix in islice(_fixes(paths, root), _REQUESTS if is_away else None):
        rewritten = [rewrite(path) for path in paths]
        if rewritten == paths:
            continue
        files = [below(find(root), os.fsencode(path)) for path in rewritten]
        there = [file for file, is_there in zip(files, _exist(files), strict=True) if is_there]
        if 2 * len(there) >= len(paths):
            return str(there[0]), fix
    return None


def _exist(files: Sequence[File]) -> list[bool]:
    try:
        return [size is not None for size, _ in look_at(files)]
    except (StorageError, ValueError):
        return [False] * len(files)


def _fixes(paths: list[str], root: str) -> list[_Fix]:
    """Give ways to write the paths, those with the fewest changes first."""
    ways = itertools.product(_spellings(paths), _endings(paths), _places(paths, root))
    found = []
    for way in ways:
        changes = [change for change, said in way if said]
        said = "; ".join(said for _, said in way if said)
        if changes:
            found.append((len(changes), (functools.partial(_in_turn, changes), said)))
    return [fix for _, fix in sorted(found, key=lambda one: one[0])]


def _in_turn(changes: list[Callable[[str], str]], path: str) -> str:
    for change in changes:
        path = change(path)
    return path


def _unchanged(path: str) -> str:
    return path


def _spellings(paths: list[str]) -> Iterator[_Fix]:
    yield _unchanged, ""
    if any("\\" in path for path in paths):
        yield (
            lambda path: path.replace("\\", "/"),
            r"""write / for \ in the paths (sed 's#\\#/#g')""",
        )
    if any(path != path.strip() for path in paths):
        yield str.strip, "remove the spaces around the paths"
    if any("%" in path for path in paths):
        yield urllib.parse.unquote, "write the paths without %-escapes (urllib.parse.unquote)"
    if all(path.isascii() for path in paths):
        return
    yield _from_cp1252, "save the listing as UTF-8, not as Windows-1252"
    for form in ("NFC", "NFD"):
        yield (
            functools.partial(_normalized, form),
            f"write accents as the file names do (unicodedata.normalize({form!r}, path))",
        )


def _from_cp1252(path: str) -> str:
    return os.fsencode(path).decode("cp1252", "replace")


def _normalized(form: Literal["NFC", "NFD"], path: str) -> str:
    return unicodedata.normalize(form, path)


def _endings(paths: list[str]) -> Iterator[_Fix]:
    yield _unchanged, ""
    for ending in (*ENDINGS, *(ending.upper() for ending in ENDINGS)):
        yield functools.partial(_with_ending, ending), f"end the paths in {ending}"


def _with_ending(ending: str, path: str) -> str:
    stem, dot, last = path.rpartition(".")
    return (stem if f"{dot}{last}".lower() in ENDINGS else path) + ending


def _places(paths: list[str], root: str) -> Iterator[_Fix]:
    """Give other folders that the paths may start at: those inside, and those above."""
    yield _unchanged, ""
    for name in _folders_in(root):
        yield functools.partial(_inside, name), f"write {name}/ before each path"
    parts = paths[0].replace("\\", "/").split("/")
    for count in range(1, len(parts)):
        left_out = "/".join(parts[:count])
        yield functools.partial(_shorter, count), f"leave {left_out}/ out of the paths"
    if is_uri(root):
        return
    here = Path(root).absolute()
    for place in dict.fromkeys([*here.parents[:_ABOVE], Path.cwd()]):
        if place not in (here, Path("/")):
            yield (
                functools.partial(_inside, str(place)),
                f"the paths start at {place}, not at the listing's folder: move the listing there",
            )


def _inside(folder: str, path: str) -> str:
    return path if path.startswith("/") or is_uri(path) else f"{folder}/{path}"


def _shorter(count: int, path: str) -> str:
    return "/".join(path.split("/")[count:]) or path


def _folders_in(root: str) -> list[str]:
    """Name some folders in a folder, and in those, by their paths from it on."""
    if is_uri(root):
        infos = Folder.open(root).list_infos()
        return sorted(info.base_name for info in infos if not info.is_file)[:_FOLDERS]
    found: list[str] = []
    for within in ("", *_folders_of(root, "")):
        found += _folders_of(root, within)
        if len(found) >= _FOLDERS:
            break
    return found[:_FOLDERS]


def _folders_of(root: str, within: str) -> list[str]:
    try:
        with os.scandir(os.path.join(root, within)) as entries:
            names = list(islice((entry.name for entry in entries if entry.is_dir()), _FOLDERS))
    except OSError:
        return []
    return sorted(os.path.join(within, name) for name in names)
