"""Rewrites of a folded program that save passes over memory.

The program is linear in its inputs and writes into nothing, so that a copy is as good as its
source, adding zero is nothing, and two factors are one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

_aten = torch.ops.aten
_COPIES = (
    _aten.alias.default,
    _aten.clone.default,
    _aten.detach.default,
    _aten.expand.default,
    _aten._to_copy.default,
)
_ZEROS = (
    _aten._new_zeros_with_same_feature_meta.default,
    _aten.new_zeros.default,
    _aten.zeros_like.default,
)


def simplify(program: fx.GraphModule) -> None:
    """Rewrite a program in place; every node has its ``val``, a constant its own value."""
    for rule in (_without_copy, _without_zero, _one_factor, _fused):
        for node in list(program.graph.nodes):
            rule(program, node)
        program.graph.eliminate_dead_code()
    program.graph.lint()
    program.recompile()


def taken_out(program: fx.GraphModule) -> dict[str, Any]:
    """The constants that a program reads, which it no longer holds afterwards."""
    held = [str(node.target) for node in program.graph.nodes if node.op == "get_attr"]
    constants = {name: getattr(program, name) for name in held}
    for name, _ in list(program.named_buffers()):
        delattr(program, name)
    for node in program.graph.nodes:
        node.meta.clear()
    return constants


def _without_copy(program: fx.GraphModule, node: fx.Node) -> None:
    """What only repeats an argument, in the same layout, is that argument."""
    if node.target in _COPIES:
        source = node.args[0]
    elif node.target is _aten.copy.default:
        source = node.args[1]
    else:
        return
    if isinstance(source, fx.Node) and _alike(node, source):
        node.replace_all_uses_with(source)


def _without_zero(program: fx.GraphModule, node: fx.Node) -> None:
    """x + 0 is x."""
    if node.target is not _aten.add.Tensor or node.kwargs:
        return
    for zero, other in (node.args, node.args[::-1]):
        if isinstance(other, fx.Node) and _alike(node, other) and _is_zero(program, zero):
            node.replace_all_uses_with(other)
            return


def _one_factor(program: fx.GraphModule, node: fx.Node) -> None:
    """(x c) d is x (c d) for constants c and d."""
    outer = _factored(program, node)
    inner = None if outer is None else _factored(program, outer[0])
    if outer is None or inner is None or len(outer[0].users) > 1:
        return
    x, c, d = inner[0], inner[1], outer[1]
    factors = _value(program, c), _value(program, d)
    product = factors[0] * factors[1]
    if product.numel() > max(factor.numel() for factor in factors):
        return  # a constant larger than both
    name = f"{c.target}_{d.target}"
    program.register_buffer(name, product)
    with program.graph.inserting_before(node):
        constant = program.graph.get_attr(name)
    constant.meta["val"] = product
    node.args = (x, constant)


def _fused(program: fx.GraphModule, node: fx.Node) -> None:
    """A + b c in one pass."""
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
    """The factors of a product of tensors that nothing else reads."""
    if isinstance(node, fx.Node) and node.target is _aten.mul.Tensor and len(node.users) == 1:
        b, c = node.args
        if isinstance(b, fx.Node) and isinstance(c, fx.Node):
            return b, c
    return None


def _dtype(node: fx.Node) -> torch.dtype | None:
    return getattr(node.meta.get("val"), "dtype", None)


def _factored(program: fx.GraphModule, node: Any) -> tuple[fx.Node, fx.Node] | None:
    """(x, c) where the node is x c, c a constant tensor."""
    if not isinstance(node, fx.Node) or node.target is not _aten.mul.Tensor:
        return None
    for x, c in (node.args, node.args[::-1]):
        if isinstance(x, fx.Node) and isinstance(c, fx.Node) and c.op == "get_attr":
            return (x, c) if isinstance(_value(program, c), Tensor) else None
    return None


def _is_zero(program: fx.GraphModule, node: Any) -> bool:
    if not isinstance(node, fx.Node):
        return False
    if node.op == "get_attr":
        value = _value(program, node)
        return isinstance(value, Tensor) and not bool(value.any())
    return node.target in _ZEROS


def _value(program: fx.GraphModule, node: fx.Node) -> Any:
    return getattr(program, str(node.target))


def _alike(node: fx.Node, other: fx.Node) -> bool:
    """Whether two values have the same shape, type, device and layout in memory."""
    x, y = node.meta.get("val"), other.meta.get("val")
    return (
        isinstance(x, Tensor)
        and isinstance(y, Tensor)
        and (x.shape, x.dtype, x.device, x.stride()) == (y.shape, y.dtype, y.device, y.stride())
    )
