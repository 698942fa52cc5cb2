# SPDX-License-Identifier: Apache-2.0
"""The encoder: load it, find its layers, trace it into one graph, and run it by an engine."""
