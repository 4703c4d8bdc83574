"""Benchmarks: `python -m bench.NAME --json FILE` runs one suite. Modules that start with an underscore are shared by the suites."""
