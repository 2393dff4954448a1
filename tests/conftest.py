"""Settings for all tests."""

import os

from hypothesis import settings

# Shared machines are slow at times, which is no fault. In CI the same inputs are tried each time, so that a change
# is judged by what it changed; elsewhere they are drawn anew.
settings.register_profile("here", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "here")
