"""A run as its user sees it: progress bar, callback, checkpoint and interruption."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar, final

from matfree.algorithms.running.checkpoint import Checkpoint
from matfree.errors import Interrupted
from matfree.progress import Progress

State = TypeVar("State")
"""The type of the result so far, which a callback receives."""

Result = TypeVar("Result")


@final
class Run(Generic[State]):
    """A run that shows its progress, saves its state and can be stopped at any time.

    Parameters
    ----------
    title : str
        The title of the progress bar.
    checkpoint : Checkpoint
    progress : bool
        Whether to show the bar.
    callback : function, optional
        It is called with the state of the run; returning True or raising StopIteration stops
        the run.
    """

    def __init__(
        self,
        title: str,
        checkpoint: Checkpoint,
        *,
        progress: bool = False,
        callback: Callable[[State], bool | None] | None = None,
    ) -> None:
        self.bar = Progress(title, progress)
        self.checkpoint, self.callback = checkpoint, callback
        self.save = checkpoint.save

    def is_stopped(self, state: Callable[[], State]) -> bool:
        """Whether the callback asks to stop; ``state`` is only computed if there is one."""
        if self.callback is None:
            return False
        try:
            return self.callback(state()) is True
        except StopIteration:
            return True

    def complete(
        self, total: int, work: Callable[[], Result], so_far: Callable[[], Result | None]
    ) -> Result:
        """Do the work of ``total`` units under a progress bar; see :func:`interruptible`."""
        with self.bar:
            self.bar.start(total)
            return interruptible(work, so_far)


def interruptible(work: Callable[[], Result], so_far: Callable[[], Result | None]) -> Result:
    """Call ``work``, and turn Ctrl-C into ``Interrupted`` with the result so far.

    Parameters
    ----------
    work : function
    so_far : function
        The result of what is finished; None if there is nothing to report yet.
    """
    try:
        return work()
    except KeyboardInterrupt as stop:
        result = so_far()
        if result is None:
            raise
        raise Interrupted(result) from stop
