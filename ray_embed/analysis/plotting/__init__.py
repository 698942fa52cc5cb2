# SPDX-License-Identifier: Apache-2.0
"""Pictures of how a run's features cluster, and where the encoder fails."""
