"""Arms × seeds: run them, read them back, and say better, worse, equivalent or undecided, with the evidence."""
