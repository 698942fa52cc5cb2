# SPDX-License-Identifier: Apache-2.0
"""The names of files and folders in a run folder. ``docs/results.md`` describes their contents."""

RUN = "run.json"
PLAN = "plan/plan.json"
ENCODER = "encoder"

# Folders with one Parquet part per shard.
FEATURES, REJECTS, THUMBNAILS, PCA = "features", "rejects", "thumbnails", "pca"
# The components and variances of the PCA. Its coordinates are in the parts.
COMPONENTS = "pca.parquet"

# The folder for TensorBoard, and its files.
PROJECTOR = "projector"
PROJECTOR_CONFIG = "projector_config.pbtxt"
METADATA, SAMPLE = "metadata.tsv", "sample.tsv"
PROJECTOR_EVALUATION = "events.out.tfevents.1.ray_embed"

# The measures, and the same measures as an event file for TensorBoard.
EVALUATION = "evaluation.json"
EVALUATION_EVENTS = "evaluation.tfevents"
MAPS = "maps"
PLOTS = "plots"
# The baseline: the same run with random weights, in its own run folder.
RANDOM_WEIGHTS = "random-weights"


def pca_column(feature_column: str) -> str:
    """Return the name of the column with a layer's PCA coordinates: `pca` or `pca_<layer>`."""
    return "pca" + feature_column.removeprefix("feature")
