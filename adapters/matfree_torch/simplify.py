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
    program.delete_all_unused_submodules()
    used = {node.target for node in program.graph.nodes if node.op == "get_attr"}
    for name in [name for name, _ in program.named_buffers() if name not in used]:
        delattr(program, name)
    program.graph.lint()
    program.recompile()


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
    product = _value(program, c) * _value(program, d)
    if product.numel() > max(_value(program, c).numel(), _value(program, d).numel()):
        return
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
        if (
            isinstance(product, fx.Node)
            and isinstance(other, fx.Node)
            and product.target is _aten.mul.Tensor
            and len(product.users) == 1
            and all(isinstance(x, fx.Node) for x in product.args)
            and len({x.meta["val"].dtype for x in (node, other, *product.args)}) == 1
            and other.meta["val"].ndim > 0
        ):
            with program.graph.inserting_before(node):
                fused = program.graph.call_function(
                    _aten.addcmul.default, (other, *product.args)
                )
            fused.meta["val"] = node.meta["val"]
            node.replace_all_uses_with(fused)
            return


def _factored(program: fx.GraphModule, node: Any) -> tuple[fx.Node, fx.Node] | None:
    """(x, c) where the node is x c, c a constant tensor."""
    if not isinstance(node, fx.Node) or node.target is not _aten.mul.Tensor:
        return None
    for x, c in (node.args, node.args[::-1]):
        if isinstance(c, fx.Node) and c.op == "get_attr" and isinstance(x, fx.Node):
            return x, c
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
