"""The parameters of a network that an operator is about."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import final

from torch import Tensor, nn

from matfree_torch.layout import Layout, Patterns, matching
from matfree_torch.processes import Processes


@final
class Parameters(Layout):
    """Some parameters of a network, in the order of ``named_parameters``.

    A parameter shared by several modules counts once, under its first name.

    Parameters
    ----------
    model : nn.Module
    patterns : str or sequence of str, optional
        Names to take, with ``*`` and ``?`` as wildcards; by default everything that
        requires a gradient. Named ones are taken even if they are frozen.
    processes : Processes, optional
        As for :class:`Layout`.

    Raises
    ------
    ValueError
        Nothing is left, a pattern matches nothing, or devices differ.
    """

    def __init__(
        self,
        model: nn.Module,
        patterns: Patterns | None = None,
        processes: Processes | None = None,
    ) -> None:
        everything: dict[str, Tensor] = dict(model.named_parameters())
        if patterns is None:
            chosen = {name: p for name, p in everything.items() if p.requires_grad}
        else:
            chosen = matching(everything, patterns, "parameter")
        chosen = {name: p for name, p in chosen.items() if p.is_floating_point()}
        if not chosen:
            raise ValueError(
                f"the model has no parameter to differentiate ({len(everything)} in all, none "
                "that requires a gradient); unfreeze some, or name them with params=."
            )
        super().__init__(chosen, "parameter", processes)

    @contextlib.contextmanager
    def differentiable(self) -> Iterator[None]:
        """Let frozen parameters require gradients for a while."""
        frozen = [p for p in self.tensors if not p.requires_grad]
        try:
            for p in frozen:
                p.requires_grad_(True)
            yield
        finally:
            for p in frozen:
                p.requires_grad_(False)
