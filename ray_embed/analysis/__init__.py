# SPDX-License-Identifier: Apache-2.0
"""What features are worth: evaluation, comparison, plots, and nearest neighbors."""
