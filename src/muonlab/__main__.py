"""`python -m muonlab` is the command line."""

from muonlab.cli import main

main()
