# SPDX-License-Identifier: Apache-2.0
"""Read a run folder: its ``run.json``, and which parts it has."""

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ray_embed.core.uri import redact_uri
from ray_embed.errors import InputError
from ray_embed.runs import integrity
from ray_embed.storage import layout, manifest, part_files
from ray_embed.storage.filesystem import Folder


@dataclass(frozen=True)
class Output:
    """The features of one layer: their column in the parts, dimension, and pooling."""

    layer: str
    column: str
    dimension: int
    pool: str


@dataclass(frozen=True)
class RunReader:
    """An open run folder, and the content of its ``run.json``."""

    folder: Folder
    manifest: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """The digest of everything that determines the bytes of the parts."""
        return str(self.manifest["fingerprint"])

    @property
    def thumbnail_fingerprint(self) -> str:
        """The fingerprint of the thumbnails."""
        return manifest.get_thumbnail_fingerprint(self.manifest)

    @property
    def config(self) -> dict[str, Any]:
        """The options of the run, as plain data."""
        return dict(self.manifest["config"])

    @cached_property
    def outputs(self) -> tuple[Output, ...]:
        """The features of the run, one for each layer, in the order of the columns."""
        return tuple(
            Output(entry["layer"], entry["column"], entry["dimension"], entry.get("pool", "none"))
            for entry in self.manifest["encoder"]["outputs"]
        )

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers whose features the run holds."""
        return tuple(output.layer for output in self.outputs)

    def output_of(self, layer: str | None) -> Output:
        """Return the features of a layer.

        Args:
            layer: the layer. None selects the only one.

        Raises:
            InputError: the run does not have the layer, or has several layers and none is named.
        """
        by_layer = {output.layer: output for output in self.outputs}
        if layer is None and len(by_layer) == 1:
            return self.outputs[0]
        if layer not in by_layer:
            problem = "several layers, so name one" if layer is None else f"no layer {layer!r}"
            raise InputError(
                f"{self.folder.display_path()}: {problem}; it holds {', '.join(by_layer)}"
            )
        return by_layer[layer]

    def column_of(self, layer: str | None) -> str:
        """Return the name of a layer's feature column; see :meth:`output_of`."""
        return self.output_of(layer).column

    def list_parts(self, kind: str = layout.FEATURES) -> list[int]:
        """Return the numbers of the parts that exist.

        Raises:
            InputError: no part exists.
        """
        numbers = list(part_files.list_part_numbers(self.folder, kind))
        if not numbers:
            raise InputError(
                f"{self.folder.display_path()}: no shard is finished yet; `ray-embed run` resumes "
                "the run"
            )
        return numbers

    def read_evaluation(self) -> dict[str, Any]:
        """Return what `evaluate` has recorded for this run, by layer, or an empty dict.

        Raises:
            StorageError: the file cannot be read.
        """
        if not self.folder.exists(layout.EVALUATION):
            return {}
        try:
            content = json.loads(self.folder.read(layout.EVALUATION))
            return dict(content["layers"]) if content["fingerprint"] == self.fingerprint else {}
        except (ValueError, KeyError, TypeError):
            # A damaged file is of no use, and can be written again.
            return {}

    def require_finished(self) -> None:
        """Refuse a run that is not finished.

        Raises:
            InputError: shards are missing.
            DamagedError: a part belongs to no planned shard.
        """
        integrity.require_finished(self.folder, self.manifest)


def open_run(run: str) -> RunReader:
    """Open a run folder.

    Args:
        run: the path or URI of the run folder.

    Raises:
        InputError: `run` is not a run folder.
    """
    folder = Folder.open(run)
    content = manifest.read_run(folder)
    if content is None or "fingerprint" not in content:
        name = redact_uri(run)
        raise InputError(f"{name}: not a run folder; `ray-embed run --out {name}` writes one")
    return RunReader(folder, content)
