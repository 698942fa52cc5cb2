# SPDX-License-Identifier: Apache-2.0
"""`ray-embed run` for `ray submit`, which copies this one file to the head node and runs it there.

    ray submit cluster/aws.yaml cluster/submit.py -- --source s3://… --model … --out s3://…

Takes exactly the options of `ray-embed run`. What else it needs is on the nodes by the cluster
file: the package by its wheel, modules of your own by `file_mounts`.
"""

import os
import sys

_NO_PACKAGE = (
    "submit.py: ray_embed is not installed on this node: build it with `make wheel`, and `ray up` "
    "a cluster file that brings the wheel (file_mounts) and installs it (setup_commands)"
)


def main() -> None:
    """Run `ray-embed run` in the cluster of this node; exits as it does."""
    # `ray submit` sets none, and Ray would be started anew on this node alone.
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
