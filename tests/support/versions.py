# SPDX-License-Identifier: Apache-2.0
"""Print the versions of the packages that the recipes use."""

from importlib.metadata import version

PACKAGES = ("datasets", "duckdb", "lancedb", "numpy", "pandas", "polars", "pyarrow", "ray")

if __name__ == "__main__":
    print("\n".join(f"{name} {version(name)}" for name in PACKAGES))
