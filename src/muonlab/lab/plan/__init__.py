"""What is to be run: an experiment's file becomes cells and seeds, and what they will cost."""
