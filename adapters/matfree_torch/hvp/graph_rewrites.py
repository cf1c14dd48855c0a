r"""Rewrites of a folded program that save passes over memory.

The program is linear in its inputs and writes to none of its values. A copy can therefore be
replaced by its source, and

.. math::

    x + 0 = x, \qquad (x c) d = x (c d), \qquad a + b c = \mathrm{addcmul}(a, b, c)

for constants c and d. On large tensors every operation that is removed is a pass over memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

_aten = torch.ops.aten
_COPYING_OPERATIONS = (
    _aten.alias.default,
    _aten.clone.default,
    _aten.detach.default,
    _aten.expand.default,
    _aten._to_copy.default,
)
_ZERO_OPERATIONS = (
    _aten._new_zeros_with_same_feature_meta.default,
    _aten.new_zeros.default,
    _aten.zeros_like.default,
)


def simplify(program: fx.GraphModule) -> None:
    """Rewrite a program in place.

    Every node needs ``meta["val"]``, an example of its value; for a constant, its value.
    """
    for rule in (_remove_copy, _remove_zero, _merge_factors, _fuse_product):
        for node in list(program.graph.nodes):
            rule(program, node)
        program.graph.eliminate_dead_code()
    program.graph.lint()
    program.recompile()


def take_constants(program: fx.GraphModule) -> dict[str, Any]:
    """Remove the constants that a program reads from it, and return them by name."""
    names = [str(node.target) for node in program.graph.nodes if node.op == "get_attr"]
    constants = {name: getattr(program, name) for name in names}
    for name, _ in list(program.named_buffers()):
        delattr(program, name)
    for node in program.graph.nodes:  # example values would keep the constants alive
        node.meta.clear()
    return constants


def _remove_copy(program: fx.GraphModule, node: fx.Node) -> None:
    """Replace a copy that has the same memory layout as its source by the source."""
    if node.target in _COPYING_OPERATIONS:
        source = node.args[0]
    elif node.target is _aten.copy.default:
        source = node.args[1]
    else:
        return
    if isinstance(source, fx.Node) and _same_layout(node, source):
        node.replace_all_uses_with(source)


def _remove_zero(program: fx.GraphModule, node: fx.Node) -> None:
    """Replace x + 0 by x."""
    if node.target is not _aten.add.Tensor or node.kwargs:
        return
    for zero, other in (node.args, node.args[::-1]):
        if isinstance(other, fx.Node) and _same_layout(node, other) and _is_zero(program, zero):
            node.replace_all_uses_with(other)
            return


def _merge_factors(program: fx.GraphModule, node: fx.Node) -> None:
    """Replace (x c) d by x (c d) for constants c and d."""
    outer = _factored(program, node)
    inner = None if outer is None else _factored(program, outer[0])
    if outer is None or inner is None or len(outer[0].users) > 1:
        return
    x, c, d = inner[0], inner[1], outer[1]
    factors = _constant_value(program, c), _constant_value(program, d)
    product = factors[0] * factors[1]
    if product.numel() > max(factor.numel() for factor in factors):
        return  # broadcasting would make a constant that is larger than both
    name = f"{c.target}_{d.target}"
    program.register_buffer(name, product)
    with program.graph.inserting_before(node):
        constant = program.graph.get_attr(name)
    constant.meta["val"] = product
    node.args = (x, constant)


def _fuse_product(program: fx.GraphModule, node: fx.Node) -> None:
    """Replace a + b c by addcmul, which takes one pass over memory instead of two."""
    if node.target is not _aten.add.Tensor or node.kwargs:
        return
    for product, other in (node.args, node.args[::-1]):
        factors = _single_use_product(product)
        if factors is None or not isinstance(other, fx.Node):
            continue
        terms = (other, *factors)
        if len({_dtype(x) for x in (node, *terms)}) == 1:
            with program.graph.inserting_before(node):
                fused = program.graph.call_function(_aten.addcmul.default, terms)
            fused.meta["val"] = node.meta["val"]
            node.replace_all_uses_with(fused)
            return


def _single_use_product(node: Any) -> tuple[fx.Node, fx.Node] | None:
    """The factors b and c of a product of tensors that has a single reader."""
    if isinstance(node, fx.Node) and node.target is _aten.mul.Tensor and len(node.users) == 1:
        b, c = node.args
        if isinstance(b, fx.Node) and isinstance(c, fx.Node):
            return b, c
    return None


def _dtype(node: fx.Node) -> torch.dtype | None:
    return getattr(node.meta.get("val"), "dtype", None)


def _factored(program: fx.GraphModule, node: Any) -> tuple[fx.Node, fx.Node] | None:
    """(x, c) if the node is the product of x and a constant tensor c."""
    if not isinstance(node, fx.Node) or node.target is not _aten.mul.Tensor:
        return None
    for x, c in (node.args, node.args[::-1]):
        if isinstance(x, fx.Node) and isinstance(c, fx.Node) and c.op == "get_attr":
            return (x, c) if isinstance(_constant_value(program, c), Tensor) else None
    return None


def _is_zero(program: fx.GraphModule, node: Any) -> bool:
    if not isinstance(node, fx.Node):
        return False
    if node.op == "get_attr":
        value = _constant_value(program, node)
        return isinstance(value, Tensor) and not bool(value.any())
    return node.target in _ZERO_OPERATIONS


def _constant_value(program: fx.GraphModule, node: fx.Node) -> Any:
    return getattr(program, str(node.target))


def _same_layout(node: fx.Node, other: fx.Node) -> bool:
    """Whether two values have the same shape, data type, device and strides."""
    x, y = node.meta.get("val"), other.meta.get("val")
    return (
        isinstance(x, Tensor)
        and isinstance(y, Tensor)
        and (x.shape, x.dtype, x.device, x.stride()) == (y.shape, y.dtype, y.device, y.stride())
    )
