# SPDX-License-Identifier: Apache-2.0
"""Keep PyTorch from importing Triton where that crashes Python.

TensorFlow since 2.20 loads its LLVM for all libraries of the process, and Triton, which has another
one, then crashes on import: https://github.com/tensorflow/tensorflow/issues/124205. PyTorch imports
Triton when it exports a program, and works without it.
"""

import sys


def block_triton() -> None:
    """Let imports of Triton fail from now on, if TensorFlow was imported before it."""
    if "tensorflow" in sys.modules:
        sys.modules.setdefault("triton", None)  # type: ignore[arg-type]
