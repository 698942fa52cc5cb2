# SPDX-License-Identifier: Apache-2.0
"""ONNX models: reading them, finding out what their tensors are, and making encoders of them."""
