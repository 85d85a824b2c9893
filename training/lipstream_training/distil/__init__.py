"""Distilling students: the paper's three stages, on one process or many. From the top: `command.distil`."""
