"""How many examples Hypothesis tries: as many as a quick run has time for, or many more."""

import os

from hypothesis import HealthCheck, settings

# On a loaded machine any example may be slow, and in CI a run must be like the one before.
settings.register_profile("quick", deadline=None, derandomize="CI" in os.environ)
settings.register_profile(
    "thorough", deadline=None, max_examples=5_000, suppress_health_check=list(HealthCheck)
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))
