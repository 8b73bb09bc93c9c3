"""One recipe and one seed make one run, in a folder that holds the truth about it."""
