# SPDX-License-Identifier: Apache-2.0
"""How well features cluster, in numbers."""
