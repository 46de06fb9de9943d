"""Benchmarks: `python benchmarks/run.py`. See `docs/reference/benchmarks.md`."""
