# SPDX-License-Identifier: Apache-2.0
"""Sources of images and labels, with one module per source type."""
