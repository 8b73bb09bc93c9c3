"""Runs become answers: the figures of arms, what differs and by how much, and whether all that was planned is there."""
