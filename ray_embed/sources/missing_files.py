# SPDX-License-Identifier: Apache-2.0
"""Suggest corrections when the files of a listing are missing."""

import contextlib
import functools
import itertools
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal

from ray_embed.core.uri import is_uri, join_uri
from ray_embed.errors import InputError, StorageError
from ray_embed.sources.files import locate_file, resolve_path, stat_files
from ray_embed.sources.image_walk import IMAGE_ENDINGS, list_folders

_MAX_SAMPLE_PATHS = 16
_MAX_SUBFOLDERS = 32
_MAX_PARENTS = 3
_MAX_REMOTE_ATTEMPTS = 60
_FORMS: tuple[Literal["NFC", "NFD"], ...] = ("NFC", "NFD")
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
    if found := _find_fix([os.fsdecode(path) for path in tried], root):
        example, advice = found
        raise InputError(
            f"{listing}: {len(missing)} of the first {len(paths)} files are missing, for example "
            f"{_name_file(root, missing[0])}; found {example} instead: {advice}"
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
    kinds = (_spell_paths(paths), _change_endings(), _change_folders(paths, root))
    ways = itertools.product(*([None, *fixes] for fixes in kinds))
    # Those with the fewest changes come first.
    chosen = sorted(([fix for fix in way if fix] for way in ways), key=len)
    # Requests to an object store are slow.
    is_remote = is_uri(root) or any(map(is_uri, paths))
    for fixes in islice(chosen, _MAX_REMOTE_ATTEMPTS if is_remote else None):
        rewritten = [_rewrite(path, fixes) for path in paths]
        existing = [] if rewritten == paths else _list_existing(rewritten, root)
        if 2 * len(existing) >= len(paths):
            return existing[0], "; ".join(advice for _, advice in fixes)
    return None


def _rewrite(path: str, fixes: Iterable[_Fix]) -> str:
    for change, _ in fixes:
        path = change(path)
    return path


def _list_existing(paths: list[str], root: str) -> list[str]:
    try:
        files = [resolve_path(locate_file(root), os.fsencode(path)) for path in paths]
        stats = stat_files(files)
    except (StorageError, ValueError):
        return []
    return [str(file) for file, (size, _) in zip(files, stats, strict=True) if size is not None]


def _spell_paths(paths: list[str]) -> Iterator[_Fix]:
    if any("\\" in path for path in paths):
        yield (
            lambda path: path.replace("\\", "/"),
            r"""replace \ with / in the paths (sed 's#\\#/#g')""",
        )
    if any(path != path.strip() for path in paths):
        yield str.strip, "remove the spaces around the paths"
    if not all(path.isascii() for path in paths):
        for form in _FORMS:
            yield (
                functools.partial(unicodedata.normalize, form),
                "use the Unicode normalization of the file names "
                f"(unicodedata.normalize({form!r}, path))",
            )


def _change_endings() -> Iterator[_Fix]:
    for ending in (*IMAGE_ENDINGS, *map(str.upper, IMAGE_ENDINGS)):
        yield (
            functools.partial(_replace_ending, ending),
            f"add or change the file extension to {ending}",
        )


def _replace_ending(ending: str, path: str) -> str:
    stem, dot, last = path.rpartition(".")
    return (stem if f"{dot}{last}".lower() in IMAGE_ENDINGS else path) + ending


def _change_folders(paths: list[str], root: str) -> Iterator[_Fix]:
    """Yield other base folders: subfolders, parts of the paths, and parent folders."""
    for name in _list_subfolders(root):
        yield functools.partial(_prepend, name), f"prepend {name}/ to each path"
    parts = paths[0].replace("\\", "/").split("/")
    for count in range(1, len(parts)):
        yield (
            functools.partial(_drop_folders, count),
            f"remove {'/'.join(parts[:count])}/ from the paths",
        )
    if is_uri(root):
        return
    folder = Path(root).absolute()
    for base in map(str, dict.fromkeys([*folder.parents[:_MAX_PARENTS], Path.cwd()])):
        if base not in (str(folder), "/"):
            yield (
                functools.partial(_prepend, base),
                f"the paths are relative to {base}, not to the folder of the listing: move the "
                "listing there",
            )


def _prepend(folder: str, path: str) -> str:
    return path if path.startswith("/") or is_uri(path) else f"{folder}/{path}"


def _drop_folders(count: int, path: str) -> str:
    return "/".join(path.split("/")[count:]) or path


def _list_subfolders(root: str) -> list[str]:
    """Return the relative paths of some subfolders, up to two levels deep."""
    folders: list[str] = []
    with contextlib.suppress(InputError):
        folders += list_folders(root)
        for name in folders[:_MAX_SUBFOLDERS]:
            folders += [f"{name}/{inner}" for inner in list_folders(join_uri(root, name))]
    return folders[:_MAX_SUBFOLDERS]
