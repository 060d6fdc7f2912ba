"""What holds for every test."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# A machine that others use as well makes any example slow; what hangs is ended by the test's own time limit.
settings.register_profile("shared machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared machine")
