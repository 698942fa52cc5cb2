# SPDX-License-Identifier: Apache-2.0
"""Image files: headers, decoding, resizing, and thumbnails."""
