"""Runs that are missing become runs that are done: sweeps, races, searches, and the processes that they start."""
