# SPDX-License-Identifier: Apache-2.0
"""The plan: which record is which row of which shard, kept as Parquet.

The records of each split lie in ``plan/<ordinal>-<split>/part-*.parquet``, a row group a shard, so
that an actor reads only its shard's rows; the outline, which says how many there are, lies beside
them in ``plan/plan.json``.
"""

from ray_embed.planning.builder import make_plan
from ray_embed.planning.plan import Plan, Shard, SplitPlan, load, save
from ray_embed.planning.rows import (
    copy_records,
    first_difference,
    read_shard,
    record_columns,
    renew_records,
    write_streamed,
)

__all__ = [
    "Plan",
    "Shard",
    "SplitPlan",
    "copy_records",
    "first_difference",
    "load",
    "make_plan",
    "read_shard",
    "record_columns",
    "renew_records",
    "save",
    "write_streamed",
]
