"""Operators follow their model: changes between two blocks of matvecs are adopted or refused."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, final

from torch import nn

from matfree_torch.objective import isolation
from matfree_torch.objective.batches import Batches
from matfree_torch.objective.fsdp import FullySharded, Unsharded
from matfree_torch.objective.model_calls import FunctionModule
from matfree_torch.objective.model_state import ModelState
from matfree_torch.vectors.parameters import Parameters


@final
class Following:
    """Adopts what has changed in a model, a loss and data since the previous block of matvecs.

    Tensors that were replaced by others of the same name and shape are adopted, and graphs of
    earlier values are discarded. Other parameters, and layers that draw random numbers, are
    refused.

    Parameters
    ----------
    model : nn.Module
    loss : function or None
    batches : Batches
    sharding : Unsharded or FullySharded, or None
    distributed : bool
        Whether several processes share the data. Errors are then stored in ``failure``, to be
        raised in all processes, instead of being raised.

    Raises
    ------
    ValueError
        A layer draws random numbers in its present mode.

    Warns
    -----
    UserWarning
        A layer normalizes over the batch, and there are several batches.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Any,
        batches: Batches,
        sharding: Unsharded | FullySharded | None,
        *,
        distributed: bool,
    ) -> None:
        self.parameters: Parameters | None = None
        """The parameters that vectors consist of."""
        self.failure: Exception | None = None
        """The reason for which the model as it was at the last update cannot be followed."""
        self._model, self._batches, self._distributed = model, batches, distributed
        self._sharding, self._ordered = sharding, batches.ordered
        with self.sharded():
            function = model.function if isinstance(model, FunctionModule) else loss
            fully = isinstance(sharding, FullySharded)
            self.state = ModelState(model, function, batches.data, sharded=fully)
        batches.after_pass = self.state.pass_ends
        self._check_modes(warn=True)

    def sharded(
        self, context: AbstractContextManager[None] | None = None
    ) -> AbstractContextManager[None]:
        """The context, inside of which the parameters of a fully sharded model are sharded."""
        context = context or nullcontext()
        if isinstance(self._sharding, FullySharded):
            return self._sharding.around(context)
        return context

    def update(self, *, wait: bool) -> None:
        """Adopt all changes since the last update.

        Parameters
        ----------
        wait : bool
            Whether values are compared before the call returns. Otherwise the caller continues
            while a device computes their hash, and calls :meth:`values_are_current` afterwards.

        Raises
        ------
        OperatorError
            The chosen parameters are no longer those of the model.
        ValueError
            A layer draws random numbers in its present mode.
        """
        if isinstance(self._sharding, Unsharded):
            self._sharding.update()
        moved = self._model.follow() if isinstance(self._model, FunctionModule) else None
        with self.sharded():
            structure = self.state.structure
            changed, inputs = self.state.begin()
            if changed:
                self.failure = self._examine(warn=structure != self.state.structure)
        self._reset_if(inputs)
        if wait or self._distributed or not self.state.asynchronous:
            self.values_are_current()
        failure = moved or self.failure
        if failure is not None and not self._distributed:
            raise failure.with_traceback(None)

    def values_are_current(self) -> bool:
        """Whether the last update has found all changes.

        If values have changed without any other sign, such as a version counter, what was computed
        from stored graphs since then is invalid.
        """
        model, inputs = self.state.settle()
        self._reset_if(inputs)
        return not (model or inputs)

    def _reset_if(self, inputs_have_changed: bool) -> None:
        """Do not compare the next pass over the data with earlier ones if the user changed them."""
        if inputs_have_changed:
            self._batches.reset()

    def _examine(self, *, warn: bool) -> Exception | None:
        try:
            if self.parameters is not None:
                self.parameters.follow()
            self._check_modes(warn=warn)
        except ValueError as failure:  # OperatorError included
            return failure
        return None

    def _check_modes(self, *, warn: bool) -> None:
        # Others may be kept without being called; they are examined when they are.
        registered = ((name, m) for name, m in self.state.named_modules() if not _is_other(name))
        isolation.refuse_random_layers(registered)
        layer = isolation.layer_with_batch_statistics(self.state.named_modules())
        self._batches.ordered = self._ordered or layer is not None
        if layer and warn and (self._distributed or not self._batches.single):
            isolation.warn_of_batch_statistics(layer)


def _is_other(name: str) -> bool:
    return name.endswith(isolation.NOT_REGISTERED)
