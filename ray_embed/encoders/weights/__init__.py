# SPDX-License-Identifier: Apache-2.0
"""Weights of every format, loaded into a model or drawn at random."""
