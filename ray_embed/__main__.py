# SPDX-License-Identifier: Apache-2.0
"""``python -m ray_embed`` is the same as ``ray-embed``."""

from ray_embed.cli.commands import main

if __name__ == "__main__":
    main()
