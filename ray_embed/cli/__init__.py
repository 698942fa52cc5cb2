# SPDX-License-Identifier: Apache-2.0
"""The command line: commands, their options, and the process that supervises a run."""
