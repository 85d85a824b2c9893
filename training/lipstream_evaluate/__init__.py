"""Evaluating lip-sync: results against references and sound. Entry point: `command.evaluate`."""
