# SPDX-License-Identifier: Apache-2.0
"""Pictures of how a run's features cluster, and where the encoder fails."""

from ray_embed.plotting.draw import plot

__all__ = ["plot"]
