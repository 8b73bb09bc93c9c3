"""How fast the step is on this machine: `muonlab bench`, benchmarks/step.py. Not imported by `import muonlab.optim`."""
