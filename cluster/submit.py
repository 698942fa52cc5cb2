# SPDX-License-Identifier: Apache-2.0
"""Run `ray-embed run` by `ray submit`, which copies this file to the head node and runs it there.

    ray submit cluster/aws.yaml cluster/submit.py -- --source s3://… --model … --out s3://…

It takes exactly the options of `ray-embed run`. The cluster file puts everything else on the nodes:
the package by its wheel, your modules by `file_mounts`.
"""

import os
import sys

_NO_PACKAGE = (
    "submit.py: ray_embed is not installed on this node: build it with `make wheel`, then `ray up` "
    "with a cluster file that copies the wheel (file_mounts) and installs it (setup_commands)"
)


def main() -> None:
    """Run `ray-embed run` in the cluster of this node, and exit with its code."""
    # `ray submit` sets no address, so a new Ray would be started on this node alone.
    os.environ.setdefault("RAY_ADDRESS", "auto")
    try:
        from ray_embed.cli.commands import main as ray_embed
    except ModuleNotFoundError as error:
        if error.name != "ray_embed":
            raise
        print(_NO_PACKAGE, file=sys.stderr)
        sys.exit(2)
    sys.argv = ["ray-embed", "run", *sys.argv[1:]]
    ray_embed()


if __name__ == "__main__":
    main()
