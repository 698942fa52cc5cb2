# SPDX-License-Identifier: Apache-2.0
"""Files and run folders, on a local disk or an object store: read, write, lock, retry."""
