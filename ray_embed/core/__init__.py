# SPDX-License-Identifier: Apache-2.0
"""Helpers that know nothing of runs, Ray or TensorFlow: arrays, threads, the console, URIs."""
