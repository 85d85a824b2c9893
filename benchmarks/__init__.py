"""Benchmarks of LipStream, one script each; README.md lists the commands."""
