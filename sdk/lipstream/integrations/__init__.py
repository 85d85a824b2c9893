"""Adapters to frameworks for voice agents, each with a separate extra; importing this package imports none of them."""
