# SPDX-License-Identifier: Apache-2.0
"""Suggest corrections when the files of a listing are missing."""

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
from ray_embed.sources.files import File, locate_file, resolve_path, stat_files
from ray_embed.sources.image_walk import IMAGE_ENDINGS
from ray_embed.storage.filesystem import Folder

_MAX_SAMPLE_PATHS = 16
_MAX_SUBFOLDERS = 32
_MAX_PARENTS = 3
_MAX_REMOTE_ATTEMPTS = 60
# A function that rewrites a path, and the equivalent instruction for the user.
_Fix = tuple[Callable[[str], str], str]


def check_files(paths: Sequence[bytes], is_there: Sequence[bool], root: str, listing: str) -> None:
    """Raise an error if nearly all files are missing and a systematic correction of the paths finds
    them.

    Args:
        paths: the first paths of the listing.
        is_there: whether each file exists.
        root: the base folder for relative paths.
        listing: the listing, for the message.

    Raises:
        InputError: nearly all files are missing; the message suggests a fix.
    """
    # If more than 2% of the files exist, the paths are written correctly and some files are simply
    # missing.
    if 50 * sum(is_there) > len(paths):
        return
    missing = [path for path, exists in zip(paths, is_there, strict=True) if not exists]
    # Spread the sample, because the first paths may all be of one class.
    tried = missing[:: max(1, len(missing) // _MAX_SAMPLE_PATHS)][:_MAX_SAMPLE_PATHS]
    if fixed := _find_fix([os.fsdecode(path) for path in tried], root):
        example, fix = fixed
        raise InputError(
            f"{listing}: {len(missing)} of the first {len(paths)} files are missing, for example "
            f"{_name_file(root, missing[0])}; found {example} instead: {fix}"
        )


def explain_all_missing(count: int, path: bytes, root: str, split: str) -> InputError:
    """Return the error for a listing of which no file exists."""
    return InputError(
        f"--source {split}: none of the {count} files exists, for example "
        f"{_name_file(root, path)}; relative paths are resolved against the folder of the listing"
    )


def _name_file(root: str, path: bytes) -> str:
    return str(resolve_path(locate_file(root), path))


def _find_fix(paths: list[str], root: str) -> tuple[str, str] | None:
    """Return the file that the first successful correction finds, and describe the correction."""
    # Requests to an object store are slow.
    is_remote = is_uri(root) or any(map(is_uri, paths))
    for rewrite, fix in islice(
        _list_fixes(paths, root), _MAX_REMOTE_ATTEMPTS if is_remote else None
    ):
        rewritten = [rewrite(path) for path in paths]
        if rewritten == paths:
            continue
        files = [resolve_path(locate_file(root), os.fsencode(path)) for path in rewritten]
        existing = [file for file, exists in zip(files, _check_exist(files), strict=True) if exists]
        if 2 * len(existing) >= len(paths):
            return str(existing[0]), fix
    return None


def _check_exist(files: Sequence[File]) -> list[bool]:
    try:
        return [size is not None for size, _ in stat_files(files)]
    except (StorageError, ValueError):
        return [False] * len(files)


def _list_fixes(paths: list[str], root: str) -> list[_Fix]:
    """Return candidate corrections, those with the fewest changes first."""
    ways = itertools.product(
        _spell_paths(paths), _change_endings(paths), _change_folders(paths, root)
    )
    fixes = []
    for way in ways:
        changes = [change for change, advice in way if advice]
        advice = "; ".join(advice for _, advice in way if advice)
        if changes:
            fixes.append((len(changes), (functools.partial(_apply_all, changes), advice)))
    return [fix for _, fix in sorted(fixes, key=lambda item: item[0])]


def _apply_all(changes: list[Callable[[str], str]], path: str) -> str:
    for change in changes:
        path = change(path)
    return path


def _keep_path(path: str) -> str:
    return path


def _spell_paths(paths: list[str]) -> Iterator[_Fix]:
    yield _keep_path, ""
    if any("\\" in path for path in paths):
        yield (
            lambda path: path.replace("\\", "/"),
            r"""replace \ with / in the paths (sed 's#\\#/#g')""",
        )
    if any(path != path.strip() for path in paths):
        yield str.strip, "remove the spaces around the paths"
    if any("%" in path for path in paths):
        yield urllib.parse.unquote, "write the paths without %-escapes (urllib.parse.unquote)"
    if all(path.isascii() for path in paths):
        return
    yield _decode_cp1252, "save the listing as UTF-8, not as Windows-1252"
    for form in ("NFC", "NFD"):
        yield (
            functools.partial(_normalize, form),
            f"use the Unicode normalization of the file names (unicodedata.normalize({form!r}, "
            "path))",
        )


def _decode_cp1252(path: str) -> str:
    return os.fsencode(path).decode("cp1252", "replace")


def _normalize(form: Literal["NFC", "NFD"], path: str) -> str:
    return unicodedata.normalize(form, path)


def _change_endings(paths: list[str]) -> Iterator[_Fix]:
    yield _keep_path, ""
    for ending in (*IMAGE_ENDINGS, *(ending.upper() for ending in IMAGE_ENDINGS)):
        yield (
            functools.partial(_replace_ending, ending),
            f"add or change the file extension to {ending}",
        )


def _replace_ending(ending: str, path: str) -> str:
    stem, dot, last = path.rpartition(".")
    return (stem if f"{dot}{last}".lower() in IMAGE_ENDINGS else path) + ending


def _change_folders(paths: list[str], root: str) -> Iterator[_Fix]:
    """Yield other candidate base folders: subfolders and parent folders."""
    yield _keep_path, ""
    for name in _list_folders(root):
        yield functools.partial(_prepend_folder, name), f"prepend {name}/ to each path"
    parts = paths[0].replace("\\", "/").split("/")
    for count in range(1, len(parts)):
        dropped = "/".join(parts[:count])
        yield functools.partial(_drop_folders, count), f"remove {dropped}/ from the paths"
    if is_uri(root):
        return
    folder = Path(root).absolute()
    for base in dict.fromkeys([*folder.parents[:_MAX_PARENTS], Path.cwd()]):
        if base not in (folder, Path("/")):
            yield (
                functools.partial(_prepend_folder, str(base)),
                f"the paths are relative to {base}, not to the folder of the listing: move the "
                "listing there",
            )


def _prepend_folder(folder: str, path: str) -> str:
    return path if path.startswith("/") or is_uri(path) else f"{folder}/{path}"


def _drop_folders(count: int, path: str) -> str:
    return "/".join(path.split("/")[count:]) or path


def _list_folders(root: str) -> list[str]:
    """Return the relative paths of some subfolders, up to two levels deep."""
    if is_uri(root):
        infos = Folder.open(root).list_infos()
        return sorted(info.base_name for info in infos if not info.is_file)[:_MAX_SUBFOLDERS]
    folders: list[str] = []
    for parent in ("", *_list_subfolders(root, "")):
        folders += _list_subfolders(root, parent)
        if len(folders) >= _MAX_SUBFOLDERS:
            break
    return folders[:_MAX_SUBFOLDERS]


def _list_subfolders(root: str, parent: str) -> list[str]:
    try:
        with os.scandir(os.path.join(root, parent)) as entries:
            names = list(
                islice((entry.name for entry in entries if entry.is_dir()), _MAX_SUBFOLDERS)
            )
    except OSError:
        return []
    return sorted(os.path.join(parent, name) for name in names)
