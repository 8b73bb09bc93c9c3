"""Answers become reports: sentences, tables, charts and pages. Needs no torch."""
