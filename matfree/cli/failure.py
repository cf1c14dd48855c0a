"""The exception by which a command reports bad input."""

from __future__ import annotations


class CommandError(Exception):
    """Bad input. Its message is one line that says what to do; the command ends with it."""


def one_line(error: BaseException) -> str:
    """An exception as one line: its type, followed by its message if there is one."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
