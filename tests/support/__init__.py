# SPDX-License-Identifier: Apache-2.0
"""What tests share: pictures, runs, encoders, clusters, an object store, and a browser."""
