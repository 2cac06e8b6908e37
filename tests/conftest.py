"""How the tests run: the same draws each time, and no test that fails because the machine is busy."""

import os

# Before torch is imported: sums in one order on every machine, and in forked processes too.
os.environ["OMP_NUM_THREADS"] = "1"

from hypothesis import settings

settings.register_profile("tedm", deadline=None, derandomize=True)
settings.load_profile("tedm")
