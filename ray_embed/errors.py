# SPDX-License-Identifier: Apache-2.0
"""What can go wrong, by who can mend it. The command line turns these into exit codes."""


class RayEmbedError(Exception):
    """Base of the errors below: a sentence for the user, shown without a traceback."""

    exit_code = 1


class InputError(RayEmbedError):
    """What the user gave does not fit; the message names the thing, its value and the mend."""

    exit_code = 2


class RunError(RayEmbedError):
    """The run failed while working; what was finished is kept, the message says how to go on."""
