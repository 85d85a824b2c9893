"""Settings of all tests: hypothesis without deadlines, since nothing here may depend on how fast a machine is."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("lipstream", deadline=None)
settings.load_profile("lipstream")
