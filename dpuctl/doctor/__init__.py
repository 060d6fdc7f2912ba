"""Checks of a whole installation, each with the cure of what it finds. Pure: what was seen in, findings out."""
