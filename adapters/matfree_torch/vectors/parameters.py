"""The parameters of a network as one flat vector."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import final

from torch import Tensor, nn

from matfree import OperatorError
from matfree_torch.distributed.collectives import Communicator
from matfree_torch.vectors.entries import is_differentiable
from matfree_torch.vectors.layout import Layout, Patterns, match_names


@final
class Parameters(Layout):
    """Some parameters of a network, in the order of ``named_parameters``.

    A parameter that several modules share occurs once, under its first name.

    Parameters
    ----------
    model : nn.Module
    patterns : str or sequence of str, optional
        Names, or patterns with the wildcards ``*`` and ``?``, of the parameters to select; by
        default all parameters that require gradients. Parameters selected by name may be frozen.
    communicator : Communicator, optional
        As for :class:`Layout`.

    Raises
    ------
    ValueError
        No parameter is selected, a pattern matches none, or as for :class:`Layout`.
    """

    def __init__(
        self,
        model: nn.Module,
        patterns: Patterns | None = None,
        communicator: Communicator | None = None,
    ) -> None:
        available: dict[str, Tensor] = dict(model.named_parameters())
        chosen = _choose_parameters(available, patterns)
        if not chosen:
            raise ValueError(
                f"the model has no parameter to differentiate: it has {len(available)}, and none "
                "of those selected is real or complex and requires a gradient; unfreeze some, or "
                "name them with params=."
            )
        super().__init__(chosen, "parameter", communicator)
        self._model, self._patterns, self._known = model, patterns, frozenset(available)
        self._shapes = {name: _description(p) for name, p in chosen.items()}

    def follow(self) -> None:
        """Adopt the tensors that the model has under the same names now.

        Raises
        ------
        OperatorError
            A parameter is missing, has another shape, device or data type, or there is a new one
            that the operator would include.
        """
        present: dict[str, Tensor] = dict(self._model.named_parameters())
        every = dict(self._model.named_parameters(remove_duplicate=False))
        new = {name: p for name, p in present.items() if name not in self._known}
        new = _choose_parameters(new, self._matching(new))
        changes = [f"{name!r} {_description(p)} is new" for name, p in new.items()]
        for name, before in self._shapes.items():
            if name not in present:
                how = "is shared with another one now" if name in every else "is missing"
                changes.append(f"{name!r} {before} {how}")
            elif (now := _description(present[name])) != before:
                changes.append(f"{name!r} is {now} instead of {before}")
        if changes:
            more = f" and {len(changes) - 6} further changes" * (len(changes) > 6)
            raise OperatorError(
                "the parameters of the model are no longer those that the operator was created "
                f"for: {'; '.join(changes[:6])}{more}. Create the operator again for the present "
                "model, or undo the change."
            )
        self._by_name.update({name: present[name] for name in self.names})

    def _matching(self, names: Iterable[str]) -> list[str] | None:
        """The patterns that match some of the names; None if there are no patterns."""
        if self._patterns is None:
            return None
        patterns = [self._patterns] if isinstance(self._patterns, str) else self._patterns
        return [p for p in patterns if any(fnmatchcase(name, p) for name in names)]

    @contextlib.contextmanager
    def differentiable(self) -> Iterator[None]:
        """Make frozen parameters require gradients within the context."""
        frozen = [p for p in self.tensors if not p.requires_grad]
        try:
            for p in frozen:
                p.requires_grad_(True)
            yield
        finally:
            for p in frozen:
                p.requires_grad_(False)


def _choose_parameters(
    available: Mapping[str, Tensor], patterns: Patterns | None
) -> dict[str, Tensor]:
    if patterns is None:
        chosen = {name: p for name, p in available.items() if p.requires_grad}
    else:
        chosen = match_names(available, patterns, "parameter")
    # Quantized and counting parameters have no derivative.
    return {name: p for name, p in chosen.items() if is_differentiable(p)}


def _description(p: Tensor) -> str:
    """The shape, the data type, the device, and the sharding of a tensor."""
    placements = getattr(p, "placements", "")
    dtype = str(p.dtype).removeprefix("torch.")
    return f"{tuple(p.shape)} {dtype} on {p.device}{placements and f' as {placements}'}"
