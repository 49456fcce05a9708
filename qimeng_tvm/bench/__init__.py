"""Benchmarks: the suite, the systems ours is measured against, and how they are timed."""
