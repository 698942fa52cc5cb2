# SPDX-License-Identifier: Apache-2.0
"""Libraries of PyTorch encoders that are given by name, each in a module of its own.

None of the modules imports PyTorch or a library before it loads a model.
"""
