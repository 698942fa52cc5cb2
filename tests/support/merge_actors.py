# SPDX-License-Identifier: Apache-2.0
"""An actor that merges pieces, for tests that merge in other processes."""

import ray


def start_merge_actor():
    """Start an actor that calls functions, as an extraction actor does, and counts its calls."""

    class MergeActor:
        def __init__(self):
            self._count = 0

        def call(self, function, item):
            self._count += 1
            return function(item)

        def count(self):
            return self._count

    return ray.remote(MergeActor).options(num_cpus=0).remote()
