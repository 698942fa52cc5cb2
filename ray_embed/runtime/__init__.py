# SPDX-License-Identifier: Apache-2.0
"""Ray: sessions, nodes, capacity, and the pool of actors."""
