# SPDX-License-Identifier: Apache-2.0
"""The frameworks that encoders may come from, each in a module of its own."""
