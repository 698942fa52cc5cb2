# SPDX-License-Identifier: Apache-2.0
"""A run folder as a whole: its identity, how it is resumed, its state, and samples of its rows."""
