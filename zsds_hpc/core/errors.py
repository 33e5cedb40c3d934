"""Every way in which a unit of work may end badly, and what each means for the operator."""


class ZsdsError(Exception):
    """Base of the errors that the suite raises on purpose; the message is one readable line."""


class UsageError(ZsdsError):
    """The user asked for something that cannot be done: the message says what to do instead."""


class SettingsError(UsageError):
    """A settings file holds an unknown, missing or out-of-range key."""


class BadInput(ZsdsError):
    """An input file cannot be used (UNPROCESSABLE): the message names file, extension, keyword or count."""


class AlgorithmFailure(ZsdsError):
    """A method gave up on readable input (FAILED).

    Parameters
    ----------
    message : str
        What failed, in one line.
    **figures : float or int or str
        The numbers that decided it; they go into the unit's record.
    """

    def __init__(self, message, **figures):
        super().__init__(message)
        self.figures = figures


class NoWork(ZsdsError):
    """There is nothing to do for this unit (NO_WORK); not a failure."""


class Retryable(ZsdsError):
    """A passing fault of the surroundings, such as a full disk: the same unit may succeed later."""


class PeerFailure(ZsdsError):
    """Another rank of this unit's group failed; raised on every rank before the next collective."""
