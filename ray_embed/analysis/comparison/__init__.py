# SPDX-License-Identifier: Apache-2.0
"""Which of several encoders, or layers, is the better one, and how alike they are."""
