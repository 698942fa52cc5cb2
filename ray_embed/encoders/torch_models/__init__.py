# SPDX-License-Identifier: Apache-2.0
"""PyTorch encoders: reading modules and exported programs, and making one program of an encoder.

Only `recognition` may be imported without PyTorch.
"""
