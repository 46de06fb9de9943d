"""Benchmarks: `python benchmarks/run.py`. See `docs/benchmarks.md`."""
