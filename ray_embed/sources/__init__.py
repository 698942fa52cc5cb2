# SPDX-License-Identifier: Apache-2.0
"""Where images and labels come from: one module for each form of data."""
