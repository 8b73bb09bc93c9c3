"""Public architectures with their expected routing, written down by hand: tables, and what walks them."""
