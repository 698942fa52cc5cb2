# SPDX-License-Identifier: Apache-2.0
"""The plan assigns every record to a row of a shard. It is stored as Parquet.

The records of each split are in ``plan/<ordinal>-<split>/part-*.parquet``, with one row group per
shard, so that an actor reads only the rows of its shard. A summary with the record counts is in
``plan/plan.json``.
"""

from ray_embed.planning.builder import make_plan, plan_split
from ray_embed.planning.plan import Plan, Shard, SplitPlan, load, save
from ray_embed.planning.rows import (
    copy_records,
    describe_difference,
    make_record_columns,
    read_shard,
    renew_records,
    write_shard,
)

__all__ = [
    "Plan",
    "Shard",
    "SplitPlan",
    "copy_records",
    "describe_difference",
    "load",
    "make_plan",
    "make_record_columns",
    "plan_split",
    "read_shard",
    "renew_records",
    "save",
    "write_shard",
]
