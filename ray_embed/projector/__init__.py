# SPDX-License-Identifier: Apache-2.0
"""From Parquet parts to TensorBoard's projector: merge, PCA, sprite, and the server."""
