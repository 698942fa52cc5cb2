# SPDX-License-Identifier: Apache-2.0
"""The names in a run folder, each spelled once; ``docs/results.md`` says what is in them."""

RUN = "run.json"
PLAN = "plan/plan.json"
ENCODER = "encoder"

# Folders with a Parquet part for each shard.
FEATURES, REJECTS, THUMBNAILS, PCA = "features", "rejects", "thumbnails", "pca"
# The components and variances of the PCA, whose coordinates are in the parts.
COMPONENTS = "pca.parquet"

# The folder for TensorBoard, and files in it.
PROJECTOR = "projector"
PROJECTOR_CONFIG = "projector_config.pbtxt"
METADATA, SAMPLE = "metadata.tsv", "sample.tsv"
EVALUATION_EVENTS = "events.out.tfevents.1.ray_embed"

# The measures, and the same numbers as an event file of TensorBoard.
EVALUATION = "evaluation.json"
EVALUATION_RECORD = "evaluation.tfevents"
MAPS = "maps"
PLOTS = "plots"
# The same run with random weights: a run folder of its own.
RANDOM_WEIGHTS = "random-weights"


def pca_column(feature_column: str) -> str:
    """Return the column of a layer's PCA coordinates: `pca` or `pca_<layer>`."""
    return "pca" + feature_column.removeprefix("feature")
