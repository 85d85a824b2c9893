"""Adapters to frameworks for voice agents, each an extra of its own; nothing is imported before it is asked for."""
