# SPDX-License-Identifier: Apache-2.0
"""Take the place of Ray's dashboard agent, and do nothing, for as long as the raylet runs.

The raylet waits for the ports of its agent before it starts, and ends if the agent ends. Ray's own
agent imports Ray and whatever serves the dashboard and the metrics, which our local Ray does not
use. If Ray is installed without its extra `default`, its own agent serves no ports either.

The raylet starts this file as a script, with the arguments of Ray's agent.
"""

import os
import sys
import time
from pathlib import Path

_PORTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port")
_NO_PORT = "-1"
_POLL_SECONDS = 1.0


def main(arguments: list[str], raylet: int) -> None:
    """Tell the raylet that there are no ports, and wait for its end.

    Args:
        arguments: the arguments of Ray's agent.
        raylet: the process id of the raylet, which is the parent of this process.
    """
    options = dict(word.partition("=")[::2] for word in arguments)
    folder, node = Path(options["--session-dir"]), options["--node-id"]
    for name in _PORTS:
        file = folder / f"{name}_{node}"
        temporary = file.with_suffix(".idle")
        temporary.write_text(_NO_PORT)
        # The raylet may read the file at any time.
        temporary.replace(file)
    while os.getppid() == raylet:
        time.sleep(_POLL_SECONDS)


if __name__ == "__main__":
    main(sys.argv[1:], os.getppid())
