"""The exception tree of QiMeng-TVM: one base class, one exit code per kind."""

from __future__ import annotations


class QimengError(Exception):
    """Base of every error this package raises on purpose.

    The message is one line: what was wrong, where, and what to do about it.
    The command line prints it without a traceback and exits with ``exit_code``.
    """

    exit_code: int = 1


class UsageError(QimengError):
    """The request itself cannot be served as written (exit code 2)."""

    exit_code = 2


class RequestError(UsageError):
    """The line of text, or the arguments built from it, do not name an operator we can make."""


class ModelError(QimengError):
    """A model cannot be read, or there is nothing in it that can be served."""


class HardwareError(QimengError):
    """The machine, or a hardware profile, cannot be understood."""


class IntrinError(QimengError):
    """An intrinsic family is unknown, was changed, or was asked for illegal parameters."""


class ScheduleError(QimengError):
    """A rule was given decisions that are not legal for its block."""


class SearchError(QimengError):
    """Tuning cannot go on."""


class RecordError(QimengError):
    """A tuning database is damaged, of another version, or locked."""


class BuildError(QimengError):
    """TVM, LLVM, the C compiler or the linker refused the operator."""


class CheckError(QimengError):
    """The checks could not be carried out (a *failed* check is a report, not an exception)."""


class LLMError(QimengError):
    """A language model gave no answer, or none that can be used."""


class BudgetError(LLMError):
    """The calls, tokens or money that a run may spend are spent."""


class TranscriptError(LLMError):
    """A transcript is damaged, or holds no answer to what is asked."""


class GenerateError(QimengError):
    """Nothing that the model wrote passed the checks."""


def last_words(error: BaseException) -> str:
    """Return the last line of an error that says something, its kind when none does: TVM's begin with a stack."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__


def last_line(error: BaseException) -> str:
    """Return the kind of an error and its last words."""
    kind, words = type(error).__name__, last_words(error)
    return f"{kind}: {words}" if str(error).strip() else kind
