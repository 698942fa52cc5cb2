# SPDX-License-Identifier: Apache-2.0
"""Record the evaluation of a run in its folder: `evaluation.json`, and a file for TensorBoard."""

import io
import json
import time
from collections.abc import Iterator
from typing import Any

from ray_embed.analysis.evaluation.report import format_evaluation
from ray_embed.errors import InputError
from ray_embed.runs.reader import RunReader
from ray_embed.storage import layout, manifest
from ray_embed.storage.lock import lock_folder


def record(run: RunReader, entries: dict[str, Any]) -> None:
    """Write some layers' entries alongside other layers' entries, while holding the folder's lock.

    If there is a projector folder, also write the numbers there for TensorBoard.

    Args:
        run: the evaluated run, as it was when its features were read.
        entries: the entry of each layer, by layer name.

    Raises:
        InputError: another process writes to the folder, or it now holds another run.
        StorageError: the storage fails.
    """
    folder, fingerprint = run.folder, run.fingerprint
    with lock_folder(folder):
        if (manifest.read_run(folder) or {}).get("fingerprint") != fingerprint:
            raise InputError(
                f"{folder.display_path()}: another run was written there meanwhile, so nothing is "
                "recorded; evaluate that run"
            )
        layers = {**run.read_evaluation(), **entries}
        content = {"fingerprint": fingerprint, "layers": layers}
        folder.write(layout.EVALUATION, json.dumps(content, indent=1, ensure_ascii=False).encode())
        events = _format_events(layers)
        # `reduce` copies this file when it writes the projector again.
        folder.write(layout.EVALUATION_EVENTS, events)
        if folder.exists(layout.PROJECTOR):
            folder.write(f"{layout.PROJECTOR}/{layout.PROJECTOR_EVALUATION}", events)


def _format_events(entries: dict[str, Any]) -> bytes:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    now = time.time()
    file = io.BytesIO()
    writer = RecordWriter(file)
    writer.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
    for summary in _make_summaries(entries):
        writer.write(Event(wall_time=now, step=0, summary=summary).SerializeToString())
    return file.getvalue()


def _make_summaries(entries: dict[str, Any]) -> Iterator[Any]:
    """Yield a scalar for each measure and a text for each table, by layer if there are several."""
    from tensorboard.plugins.scalar.summary_v2 import scalar_pb
    from tensorboard.plugins.text.summary_v2 import text_pb

    for layer, entry in entries.items():
        within = f"{layer}/" if len(entries) > 1 else ""
        for column, measures in entry["measures"].items():
            group = "evaluation" if column == "encoder" else f"evaluation_{column}"
            for name, measure in measures.items():
                yield scalar_pb(f"{group}/{within}{name}", measure["value"])
        table = "\n".join(format_evaluation(layer, entry))
        yield text_pb(f"evaluation/{within}table", f"```\n{table}\n```")
