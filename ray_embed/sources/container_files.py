# SPDX-License-Identifier: Apache-2.0
"""Files that hold many images each: one file, a folder of them, or a pattern such as `*.tar`.

Patterns have the wildcards of `glob` and braces: ``shards-{000..009}.tar``, ``{train,valid}.tar``.
"""

import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from ray_embed.core.uri import get_base_name, get_parent_uri, is_uri, join_uri, redact_uri
from ray_embed.errors import InputError
from ray_embed.sources.files import File, SizeAndTime, locate_file, resolve_path, stat_files
from ray_embed.sources.split_names import get_aliases, sort_splits
from ray_embed.storage.filesystem import Folder

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_FIRST_WORD = re.compile(r"[A-Za-z]+")
_WILDCARD = re.compile(r"[*?\[]")
_OPTIONS = re.compile(r"\?[\w.-]+=[^?]*$")
_SHARD_NUMBER = re.compile(r"-\d+-of-\d+$")


@dataclass(frozen=True)
class ContainerFiles:
    """The files of one source: `names` below `folder`, a path or URI, in reading order.

    `named` is what the source was given as, for messages.
    """

    named: str
    folder: str
    names: tuple[str, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """A note for the user if the names of the files begin with those of several splits."""
        words = (_FIRST_WORD.match(posixpath.basename(name)) for name in self.names)
        splits = sort_splits({word[0] for word in words if word and get_aliases(word[0])})
        if len(set(map(get_aliases, splits))) < 2:
            return ()
        return (
            f"{redact_uri(self.named)}: its files look like those of several splits, "
            f"{', '.join(splits)}, but are read as one; a pattern selects those of one split, such "
            f"as '{splits[0]}*'",
        )

    @property
    def first(self) -> File:
        """Where the first file is. The storage is not asked."""
        return resolve_path(locate_file(self.folder), self.names[0].encode())

    def locate(self) -> list[tuple[str, File, SizeAndTime]]:
        """Return the name of each file, where it is, and its size and modification time.

        Raises:
            StorageError: the storage does not respond.
        """
        folder = locate_file(self.folder)
        files = [resolve_path(folder, name.encode()) for name in self.names]
        return list(zip(self.names, files, stat_files(files), strict=True))


def is_pattern(named: str) -> bool:
    """Return whether a path or URI is a pattern for several files, and not the name of one."""
    path, _ = _split_options(named)
    has_braces = any("," in text or _RANGE.fullmatch(text) for text in _BRACES.findall(path))
    if not has_braces and not _WILDCARD.search(path):
        return False
    if is_uri(named):
        # No file on a store has a name with a question mark, which would begin options.
        return "?" in path or not Folder.open(named).exists()
    return not Path(named).exists()


def _split_options(named: str) -> tuple[str, str]:
    """Split a URI before the options of its file system, such as ``?scheme=http``.

    Any other question mark is a wildcard.
    """
    options = _OPTIONS.search(named) if is_uri(named) else None
    return (named[: options.start()], options[0]) if options else (named, "")


def find_files(named: str, endings: Sequence[str]) -> ContainerFiles:
    """Find the files of a source.

    Args:
        named: a file, or a folder of files with these endings; a path or URI.
        endings: the endings that count in a folder.

    Raises:
        StorageError: the storage does not respond.
    """
    info = Folder.open(named).get_info()
    if info.is_file:
        if is_uri(named):
            return ContainerFiles(named, get_parent_uri(named), (get_base_name(named),))
        path = Path(named).absolute()
        return ContainerFiles(named, str(path.parent), (path.name,))
    names = sorted(name for name in list_names(named) if get_ending(name) in endings)
    return ContainerFiles(named, named, tuple(names))


def get_ending(name: str) -> str:
    """Return the ending of the name of a file, in lower case.

    The number of a shard may follow the ending: ``train.tfrecord-00000-of-00010``. If there is no
    ending before the number, the file is a TFRecord.
    """
    stem = _SHARD_NUMBER.sub("", name)
    return PurePosixPath(stem).suffix.lower() or (".tfrecord" if stem != name else "")


def list_names(folder: str) -> Iterator[str]:
    """Yield the names directly in a folder, a path or URI, without hidden ones.

    Raises:
        StorageError: the folder cannot be listed.
    """
    names = Folder.open(folder).list_names()
    return (name for name in names if not name.startswith((".", "_")))


def match_pattern(pattern: str) -> ContainerFiles:
    """Find the files that match a pattern, a path or URI.

    Raises:
        InputError: there is no such file; names the pattern.
        StorageError: the storage does not respond.
    """
    path, options = _split_options(pattern)
    folder, _, rest = path.rpartition("/")
    # The folder is what precedes the first wildcard or brace.
    while folder and (_WILDCARD.search(folder) or "{" in folder):
        folder, _, last = folder.rpartition("/")
        rest = f"{last}/{rest}"
    if is_uri(pattern):
        folder += options
    else:
        folder = str(Path(folder or ("/" if pattern.startswith("/") else ".")).absolute())
    names: list[str] = []
    for expanded in expand_braces(rest):
        found = _find_matches(folder, expanded)
        if not found:
            raise InputError(
                f"--source {redact_uri(pattern)}: no file {redact_uri(join_uri(folder, expanded))}"
            )
        names += found
    return ContainerFiles(pattern, folder, tuple(dict.fromkeys(names)))


def _find_matches(folder: str, pattern: str) -> list[str]:
    """Return the names of files below a folder that match a pattern without braces, sorted."""
    if not is_uri(folder):
        found = (path for path in Path(folder).glob(pattern) if path.is_file())
        return sorted(path.relative_to(folder).as_posix() for path in found)
    root = Folder.open(folder)
    if not _WILDCARD.search(pattern):
        return [pattern] if root.get_info(pattern).is_file else []
    infos = root.list_infos(recursive="/" in pattern)
    names = (posixpath.relpath(info.path, root.path) for info in infos if info.is_file)
    depth = pattern.count("/")
    return sorted(n for n in names if n.count("/") == depth and fnmatchcase(n, pattern))


def expand_braces(pattern: str) -> list[str]:
    """Expand ``{000..009}`` and ``{a,b}`` in a pattern, as shells do; other braces stay."""
    for match in _BRACES.finditer(pattern):
        if bounds := _RANGE.fullmatch(match[1]):
            first, last = int(bounds[1]), int(bounds[2])
            width = len(bounds[1]) if bounds[1].startswith("0") else 0
            step = 1 if first <= last else -1
            choices = [f"{number:0{width}d}" for number in range(first, last + step, step)]
        elif "," in match[1]:
            choices = match[1].split(",")
        else:
            continue
        before, after = pattern[: match.start()], pattern[match.end() :]
        return [text for choice in choices for text in expand_braces(f"{before}{choice}{after}")]
    return [pattern]
