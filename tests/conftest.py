"""How the tests run: the same draws each time, and no test that fails because the machine is busy."""

from hypothesis import settings

settings.register_profile("tedm", deadline=None, derandomize=True)
settings.load_profile("tedm")
