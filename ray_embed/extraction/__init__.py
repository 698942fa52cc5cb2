# SPDX-License-Identifier: Apache-2.0
"""From shards to Parquet parts: check, schedule, decode, encode, and write."""
