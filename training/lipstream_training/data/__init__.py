"""Synthetic training data: speech, and drawn faces that say it."""
