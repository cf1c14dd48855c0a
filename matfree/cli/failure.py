"""The one way in which a command says that it cannot do what it was asked to."""

from __future__ import annotations


class CommandError(Exception):
    """Bad input: its message is one line, says what to do, and ends the command."""


def one_line(error: BaseException) -> str:
    """An exception as a phrase of one line: its type where the message says too little."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
