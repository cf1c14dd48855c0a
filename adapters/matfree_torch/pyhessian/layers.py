"""Layers by the end of their names, and the products of their activation Hessians."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from matfree.errors import warn
from matfree_torch.activations.activation_hessian import activation_hessian
from matfree_torch.activations.operator import ActivationHessian
from matfree_torch.activations.ports import Where
from matfree_torch.pyhessian.data import Criterion
from matfree_torch.pyhessian.recorded import Recorded
from matfree_torch.pyhessian.utils import require_shapes


def modules_ending_with(model: nn.Module, ending: str) -> set[str]:
    """The names of modules that end with ``ending``, or else with ``ending`` and a number.

    PyHessian would choose no module in the second case, so there is a warning.
    """
    names = [name for name, _ in model.named_modules() if name]
    exact = {name for name in names if name.endswith(ending)}
    if exact:
        return exact
    numbered = {name for name in names if name.rstrip("0123456789").endswith(ending)}
    if not numbered:
        endings = sorted({name.rpartition(".")[2] for name in names})
        raise ValueError(
            f"no module's name ends with {ending!r}; the names end with "
            f"{', '.join(endings[:12])}{' ...' * (len(endings) > 12)}. Pass one of these ends."
        )
    warn(
        f"no module's name ends with {ending!r}, so that PyHessian would choose none; the "
        f"{len(numbered)} that end with {ending!r} and a number are chosen, such as "
        f"{min(numbered)}.",
        UserWarning,
    )
    return numbered


def operator_of_layers(
    model: nn.Module, criterion: Criterion, batch: Any, names: set[str], at: Where
) -> ActivationHessian:
    """The operator of the activations of modules with these names."""

    def is_chosen(name: str, module: nn.Module) -> bool:
        return name in names

    operator = activation_hessian(model, criterion, batch, modules=is_chosen, at=at)
    assert isinstance(operator, ActivationHessian)  # there is no process group
    return operator


def layer_products(A: ActivationHessian, v: Sequence[Tensor]) -> list[Tensor]:
    """H[l, l] v_l for each layer l."""
    require_shapes(v, A.layout.tensors, "v", "activation")
    return [
        (A.block(name) @ x.reshape(-1)).reshape(x.shape) for name, x in zip(A.names, v, strict=True)
    ]


def mean_layer_products(
    operators: Iterable[tuple[float, ActivationHessian]], v: Sequence[Tensor]
) -> list[Tensor]:
    """The weighted mean of H[l, l] v_l over batches whose activations have the shapes of v."""
    total, divisor, skipped = [torch.zeros_like(x) for x in v], 0.0, []
    for weight, A in operators:
        if [x.shape for x in A.layout.tensors] != [x.shape for x in v]:
            skipped.append(A)
            continue
        for x, Hv in zip(total, layer_products(A, v), strict=True):
            x += weight * Hv
        divisor += weight
    if divisor == 0:
        require_shapes(v, skipped[0].layout.tensors, "active_v", "activation")
    if skipped:
        warn(
            f"batches left out because their activations do not have the shapes of the vectors: "
            f"{len(skipped)}; pass drop_last=True to the loader, or call trace_activ, which draws "
            "vectors for every batch.",
            UserWarning,
        )
    return [x / divisor for x in total]


def print_layers(recorded: Recorded) -> None:
    """Print the names of the layers and the shapes of their activations."""
    for name, x in recorded.activations.items():
        print(f"{name}: activation of shape {tuple(x.shape)}")


def warn_of_branches(names: Sequence[str]) -> None:
    """Warn that PyHessian's values for layers with these names are not those of a Hessian."""
    more = f" (as are those of {', '.join(names[1:6])}{' ...' * (len(names) > 6)})"
    warn(
        f"the input of {names[0]} is read by other operations as well, in a residual branch"
        f"{more * (len(names) > 1)}. "
        "PyHessian differentiates the layer's gradient through all of them, which does not give a "
        "Hessian: the matrix is not symmetric. The values here are second derivatives of the loss "
        "with respect to what each layer alone reads; pass at='tensor' for the tensor that all of "
        "them read.",
        UserWarning,
    )
