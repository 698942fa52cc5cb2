# SPDX-License-Identifier: Apache-2.0
"""Compare features with those of a plain call."""

import numpy as np


def assert_features_equal(found: np.ndarray, expected: np.ndarray) -> None:
    """Check |f - g| <= 1e-5·|g| + 1e-6·max|g|.

    The guarantee allows 1e-5·max|g|, for deep encoders. The encoders of the tests are small.
    """
    assert found.shape == expected.shape
    assert found.dtype == np.float32
    bound = 1e-5 * np.abs(expected) + 1e-6 * np.abs(expected).max()
    assert np.all(np.abs(found - expected) <= bound), float(np.max(np.abs(found - expected)))
