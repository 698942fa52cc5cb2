# SPDX-License-Identifier: Apache-2.0
"""Image formats that TensorFlow does not decode; one module per decoder."""
