# SPDX-License-Identifier: Apache-2.0
"""A floor for a run: what its encoder gives with random weights, of the same records."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray_embed.config import RunConfig, is_callable_reference, lists_to_tuples, make_config
from ray_embed.core.console import say as to_stderr
from ray_embed.core.uri import is_uri, join_uri, redact_uri
from ray_embed.errors import InputError
from ray_embed.options import RANDOM
from ray_embed.results import Run
from ray_embed.runs import identity
from ray_embed.runs.reader import RunReader, open_run
from ray_embed.storage import layout

# These are of the machines that the run was made on, which need not be those at hand.
_MACHINES = ("address", "actors", "gpus_per_actor", "cpus_per_actor")


def extract_baseline(run: str, say: Callable[[str], None] = to_stderr) -> Run:
    """Extract the same records with random weights, into ``RUN/random-weights``.

    All other options are the run's. It is a run like any other, with ``weights="random"``: called
    again it does what is missing. It works on the machines at hand: in a Ray of its own, or that of
    ``RAY_ADDRESS``.

    Args:
        run: the run folder; all its shards are finished.
        say: takes lines for the user.

    Raises:
        InputError: model, preprocessing or a source was a Python object, is gone, or has changed;
            or the model cannot be given random weights.
        RunError: it failed while running; finished shards are kept.
    """
    trained = open_run(run)
    config = _make_config(run, trained.config)
    say(f"the floor of random weights: {redact_uri(str(config.out))}")
    from ray_embed.pipeline import extract

    try:
        found = extract(config)
    except InputError as error:
        raise InputError(
            f"{error}\nthat was the floor of random weights; if {redact_uri(str(config.out))} "
            "holds an older one, delete that folder"
        ) from error
    _check_same_records(trained, open_run(found.path))
    return found


def _make_config(run: str, kept: dict[str, Any]) -> RunConfig:
    """Give the configuration of the floor from that of the run, as ``run.json`` has it.

    Raises:
        InputError: what it names is not there.
    """
    where = redact_uri(join_uri(run, layout.RUN))
    named = {"--model": kept["model"], "--preprocess": kept["preprocess"]}
    named |= {f"--source {split}": source for split, source in kept["sources"].items()}
    for option, name in named.items():
        if name is not None and not _is_available(name):
            raise InputError(
                f"{where}: {option} was {name!r}, which is not here: a path that is gone or starts "
                "at another folder, or an object that Python had in hand. Start in the folder that "
                "the run was made in; of an object, make the run from a file or module:callable"
            )
    machines = dict.fromkeys(_MACHINES)
    out = join_uri(run, layout.RANDOM_WEIGHTS)
    # A run of before there was the choice has kept empty labels.
    asked = {"empty_label": "keep"} | kept | machines | {"weights": RANDOM, "out": out}
    arguments = {name: lists_to_tuples(kept[name]) for name in ("model_kwargs", "source_kwargs")}
    return make_config(asked | arguments)


def _is_available(name: str) -> bool:
    return is_uri(name) or is_callable_reference(name) or Path(name).exists()


def _check_same_records(trained: RunReader, baseline: RunReader) -> None:
    mine, others = (
        {
            name: value
            for name, value in run.manifest["identity"].items()
            if name.startswith("source ")
        }
        for run in (trained, baseline)
    )
    if differences := identity.list_differences(mine, others):
        raise InputError(
            f"{trained.folder.display_path()}: its sources have changed since it was made, so that "
            f"{baseline.folder.display_path()} is of other records: {'; '.join(differences)}; "
            "delete that folder, and restore the sources or make the run anew"
        )
