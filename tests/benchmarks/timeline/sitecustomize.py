# SPDX-License-Identifier: Apache-2.0
"""Imported by every Python that starts with this folder on PYTHONPATH: writes down what it does.

Imports of big packages, and calls of the functions named below, go to $RAY_EMBED_TIMELINE as lines
`process, begin, end, CPU seconds of the process until begin and until end, thread, what`. The
package itself knows nothing of this.
"""

import functools
import importlib.abc
import importlib.machinery
import os
import sys
import threading
import time

WHERE = os.environ.get("RAY_EMBED_TIMELINE")
IMPORTS = (
    "ray",
    "tensorflow",
    "keras",
    "tf_keras",
    "openvino",
    "pyarrow",
    "pandas",
    "matplotlib",
    "scipy.linalg",
    "sklearn",
)
CALLS = {
    "ray_embed.runtime.warm_ray": ("_connect",),
    "ray_embed.runtime.session": ("RunSession.__init__",),
    "ray_embed.encoders.build_process": ("_request",),
    "ray_embed.planning": ("make_plan",),
    "ray_embed.extraction.prepare": ("prepare", "write_run_folder"),
    "ray_embed.extraction.driver": ("extract_missing",),
    "ray_embed.encoders.tensorflow_setup": ("import_tensorflow",),
    "ray_embed.extraction.worker": (
        "Extractor._open",
        "Extractor.ready",
        "Extractor.extract",
        "Extractor._encode_records",
        "_write_parts",
    ),
    "ray_embed.encoders.keras_build": (
        "KerasBuilder.build",
        "set_up_model",
        "_call_layers",
        "fold_encoder",
        "choose_engine",
    ),
    "ray_embed.encoders.model_loading": ("load_model", "load_requested_weights"),
    "ray_embed.encoders.engines.registry": ("open_engine",),
    "ray_embed.storage.part_files": ("write_part",),
    "ray_embed.projector.reduce": ("merge", "_compute_components"),
    "ray_embed.projector.bookmarks": ("make_bookmarks",),
    "ray_embed.projector.checkpoint": ("write_checkpoint",),
    "ray_embed.projector.sprite": ("write_sprite",),
    "ray_embed.results": ("load",),
    "ray": ("shutdown", "kill"),
}


def now() -> tuple[float, float]:
    return time.time(), time.process_time()


def note(begin: tuple[float, float], what: str) -> None:
    end = now()
    times = (begin[0], end[0], begin[1], end[1])
    thread = threading.current_thread().name
    line = "\t".join([str(os.getpid()), *map(str, times), thread, what])
    with open(str(WHERE), "a", encoding="utf-8") as file:
        file.write(f"{line}\n")


def timed(function, what):
    @functools.wraps(function)
    def call(*arguments, **options):
        begin = now()
        try:
            return function(*arguments, **options)
        finally:
            note(begin, what)

    return call


class Loader(importlib.abc.Loader):
    """Loads a module as ever, then wraps the functions of it that are to be timed."""

    def __init__(self, loader):
        self.loader = loader

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module):
        begin = now()
        self.loader.exec_module(module)
        name = module.__name__
        if name in IMPORTS:
            note(begin, f"import {name}")
        for path in CALLS.get(name, ()):
            *owners, last = path.split(".")
            owner = functools.reduce(getattr, owners, module)
            setattr(owner, last, timed(getattr(owner, last), f"{name.split('.')[-1]}.{path}"))


class Finder(importlib.abc.MetaPathFinder):
    """Finds the modules above by the usual way, and hands them to the loader above."""

    def find_spec(self, name, path=None, target=None):
        if name not in IMPORTS and name not in CALLS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = Loader(spec.loader)
        return spec


if WHERE:
    sys.meta_path.insert(0, Finder())
    note(now(), "start " + " ".join(sys.orig_argv[1:])[:60])
