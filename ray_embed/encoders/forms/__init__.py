# SPDX-License-Identifier: Apache-2.0
"""Forms that a model may be given in: how each is recognized and loaded, one module each."""
