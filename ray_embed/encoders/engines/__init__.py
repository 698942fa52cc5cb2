# SPDX-License-Identifier: Apache-2.0
"""Engines: ways to run a built encoder on batches of one fixed shape, one module each."""
