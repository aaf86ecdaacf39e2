"""The stages of a run, one file each: what a stage reads (`settings`, `files`) and what it does (`work`)."""
