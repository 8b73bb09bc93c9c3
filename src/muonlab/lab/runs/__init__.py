"""Run folders as values: a sweep, a collection of runs, an index over folders, curves, and tables of other people's figures."""
