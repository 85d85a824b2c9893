"""Judging lip-sync: results against references and sound. From the top: `command.evaluate`."""
