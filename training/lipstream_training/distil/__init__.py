"""Distilling students: the paper's three stages, on one process or many. Entry point: `command.distil`."""
