# SPDX-License-Identifier: Apache-2.0
"""Many encoders over the same records: every image is read and decoded once for all of them."""
