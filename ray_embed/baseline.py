# SPDX-License-Identifier: Apache-2.0
"""Extract the random-weights baseline of a run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray_embed.config import (
    RunConfig,
    is_callable_reference,
    lists_to_tuples,
    make_config,
    names_data_set,
)
from ray_embed.core.console import say as print_to_stderr
from ray_embed.core.model_names import names_model
from ray_embed.core.uri import is_uri, join_uri, redact_uri
from ray_embed.errors import InputError
from ray_embed.options import RANDOM, get_default
from ray_embed.results import Run
from ray_embed.runs import identity
from ray_embed.runs.reader import RunReader, open_run
from ray_embed.sources.container_files import is_pattern
from ray_embed.storage import layout

# Options that depend on the machine, which may differ for the baseline.
_MACHINE_OPTIONS = ("address", "actors", "gpus_per_actor", "cpus_per_actor")


def extract_baseline(run: str, say: Callable[[str], None] = print_to_stderr) -> Run:
    """Embed the records of a run with random weights, into ``RUN/random-weights``.

    All other options are copied from the run. The baseline is a regular run, so calling this again
    resumes it. It uses the Ray cluster of ``RAY_ADDRESS``, or starts Ray on this machine.

    Args:
        run: the run folder. All shards must be finished.
        say: function that prints a line for the user.

    Returns:
        The baseline run.

    Raises:
        InputError: the model, the preprocessing function or a source was a Python object, is
            missing, or has changed; or the model cannot be re-initialized.
        RunError: the run failed; finished shards are kept.
    """
    trained = open_run(run)
    config = _make_config(run, trained.config)
    say(f"baseline with random weights: {redact_uri(str(config.out))}")
    from ray_embed.pipeline import extract

    try:
        baseline = extract(config)
    except InputError as error:
        raise InputError(
            f"{error}\nThis error concerns the random-weights baseline. If "
            f"{redact_uri(str(config.out))} contains an older baseline, delete that folder"
        ) from error
    _check_same_records(trained, open_run(baseline.path))
    return baseline


def _make_config(run: str, options: dict[str, Any]) -> RunConfig:
    """Return the configuration of the baseline.

    Args:
        run: the run folder.
        options: the options of the run, from ``run.json``.

    Raises:
        InputError: the model, the preprocessing function or a source is not available.
    """
    manifest_name = redact_uri(join_uri(run, layout.RUN))
    named = {"--model": options["model"], "--preprocess": options["preprocess"]}
    named |= {f"--source {split}": source for split, source in options["sources"].items()}
    for option, name in named.items():
        if name is not None and not _is_available(name):
            raise InputError(
                f"{manifest_name}: {option} was {name!r}, which is not available (the path may be "
                "missing or relative to another folder, or it was a Python object). Run the "
                "command in the original working directory; a Python object must be replaced by a "
                "file or module:callable"
            )
    machines = dict.fromkeys(_MACHINE_OPTIONS)
    out = join_uri(run, layout.RANDOM_WEIGHTS)
    options = {name: value for name, value in options.items() if value is not None}
    # Earlier runs recorded the default label column as if it had been given.
    is_earlier = "splits_from_folders" not in options
    if is_earlier and options.get("label_column") == get_default("label_column"):
        del options["label_column"]
    # Runs that predate this option kept empty labels.
    changed = {"empty_label": "keep"} | options | machines | {"weights": RANDOM, "out": out}
    arguments = {name: lists_to_tuples(options[name]) for name in ("model_kwargs", "source_kwargs")}
    return make_config(changed | arguments)


def _is_available(name: str) -> bool:
    if is_uri(name) or is_callable_reference(name) or is_pattern(name):
        return True
    return names_data_set(name) or names_model(name) or Path(name).exists()


def _check_same_records(trained: RunReader, baseline: RunReader) -> None:
    trained_sources, baseline_sources = (
        {
            name: value
            for name, value in run.manifest["identity"].items()
            if name.startswith("source ")
        }
        for run in (trained, baseline)
    )
    if differences := identity.list_differences(trained_sources, baseline_sources):
        raise InputError(
            f"{trained.folder.display_path()}: the sources have changed since this run, so "
            f"{baseline.folder.display_path()} contains different records: "
            f"{'; '.join(differences)}. Delete that folder, then restore the sources or extract "
            "the run again"
        )
