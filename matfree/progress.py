"""The progress bar of ``progress=True``, which tqdm draws."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, final


@final
class Progress:
    """A bar that shows the progress of a run and its current estimate.

    Parameters
    ----------
    title : str
    visible : bool
        If it is False, nothing is shown and tqdm is not imported.
    """

    def __init__(self, title: str, visible: bool) -> None:
        self._bar: Any = None
        if visible:
            try:
                from tqdm.auto import tqdm
            except ImportError as cause:
                raise ImportError(
                    "progress=True needs tqdm; install it with pip install tqdm."
                ) from cause
            self._bar = tqdm(desc=title, leave=False, dynamic_ncols=True)

    def start(self, total: int) -> None:
        """Set the total amount of work."""
        if self._bar is not None:
            self._bar.reset(total=total)

    def show(self, done: int, text: Callable[[], str] | None = None) -> None:
        """Move the bar to ``done``. ``text`` is called only if the bar is visible."""
        if self._bar is None:
            return
        self._bar.update(done - self._bar.n)
        if text is not None:
            self._bar.set_postfix_str(text())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()
