"""Models that a loop can train: each has `fit`, `sample`, `state` and `load` (see `protocol`)."""
