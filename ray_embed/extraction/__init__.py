# SPDX-License-Identifier: Apache-2.0
"""Feature extraction, from shards to parts: checks, scheduling, decoding, encoding, writing."""
