"""Errors that a person can act on."""


class TedmError(Exception):
    """A mistake in the input or a limit of the machine.

    The message names the file, key or id, says what was expected and what to do. The command line
    shows it alone, without a traceback, and exits with status 1.
    """


class DivergedError(TedmError):
    """A training whose loss is not finite any more."""
