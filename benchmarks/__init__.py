"""Benchmarks, one file a part: `lmlab bench PART` runs them."""
