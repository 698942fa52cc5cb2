# SPDX-License-Identifier: Apache-2.0
"""Read, write and lock files and run folders, locally or on object stores, with retries."""
