"""The states in which a unit of work ends, and the exit codes of a job."""

from enum import StrEnum

EXIT_CLEAN = 0
EXIT_USAGE = 2
EXIT_UNITS_FAILED = 20
EXIT_RETRY = 75
EXIT_INTERRUPTED = 130


class State(StrEnum):
    """Final state of a unit; exactly one is recorded for each unit that was tried."""

    DONE = "DONE"
    NO_WORK = "NO_WORK"
    UNPROCESSABLE = "UNPROCESSABLE"
    FAILED = "FAILED"
    BLOCKED = "BLOCKED"
    ABORTED = "ABORTED"


#: Plain meaning of each state, for help texts and reports.
MEANING = {
    State.DONE: "products sealed",
    State.NO_WORK: "nothing to do",
    State.UNPROCESSABLE: "bad input: see the reason",
    State.FAILED: "the algorithm gave up: see the reason",
    State.BLOCKED: "an input unit failed",
    State.ABORTED: "the process died or a passing fault occurred: resume",
}
#: States that a rerun would not change.
FINAL = frozenset({State.DONE, State.NO_WORK, State.UNPROCESSABLE, State.FAILED})
