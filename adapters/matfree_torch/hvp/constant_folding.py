r"""The Hessian-vector product as a program from which everything but v has been computed away.

The derivative of the gradient along v is traced, operation by operation. What does not depend
on v, the forward pass, the backward pass and every factor made of them, is computed once and
stays as a constant; a product runs the rest, which is linear in v.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, final

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from matfree import OperatorError
from matfree_torch.autograd.composites import decomposed_losses
from matfree_torch.autograd.graph_memory import storage_sizes
from matfree_torch.hvp.cuda_graphs import Captured, Recorder, recorder_for
from matfree_torch.hvp.graph_cache import Retention
from matfree_torch.hvp.graph_rewrites import simplify, taken_out
from matfree_torch.hvp.strategies import Products, gradient_along, lacking_explained
from matfree_torch.objective.batches import Batch
from matfree_torch.objective.objective import Objective
from matfree_torch.vectors.layout import Layout

_CRASHING = ("mse_loss",)
"""Operations that end the interpreter when the derivative of their backward is traced."""


@final
class FoldedProducts(Products):
    """Forward over reverse, traced and folded once a batch; on a GPU captured and replayed.

    A fold, and what was captured of it, is forgotten with its batch.

    Parameters
    ----------
    objective, layout : as for every way of making products
    memory : int, optional
        Bytes that constants may take.
    """

    def __init__(self, objective: Objective, layout: Layout, memory: int | None) -> None:
        super().__init__(objective, layout)
        self.retention = Retention(memory, "folds")
        self._recorder = recorder_for(layout.device)

    def prepare(self, batch: Batch) -> Fold:
        along = gradient_along(self.objective, batch, self.layout)
        names = self.layout.names

        def product(*pieces: Tensor) -> tuple[Tensor, ...]:
            return along(dict(zip(names, pieces, strict=True)), self.layout)

        example = [torch.zeros_like(x.detach()) for x in self.layout.tensors]
        with self.objective.isolated(), decomposed_losses(), lacking_explained("folded"):
            self._refuse_what_crashes(batch)
            # Functionalized, so that no constant is written into by a later product.
            program = make_fx(torch.func.functionalize(product))(*example)
        with self.objective.isolated(), torch.no_grad():  # random numbers are drawn once more
            return Fold(program, self._recorder)

    def multiply(self, prepared: Fold, v: dict[str, Tensor], rows: Layout) -> tuple[Tensor, ...]:
        tensors = zip(self.layout.names, self.layout.tensors, strict=True)
        pieces = [v[n] if n in v else torch.zeros_like(x) for n, x in tensors]
        along = dict(zip(self.layout.names, prepared(*pieces), strict=True))
        return tuple(along[name] for name in rows.names)

    def _refuse_what_crashes(self, batch: Batch) -> None:
        """Look at a forward pass for operations whose trace would end the interpreter."""
        seen = _Operations()
        with seen:
            self.objective.value(self.objective.outputs(batch), batch.targets)
        found = [name for name in _CRASHING if name in seen.names]
        if found:
            raise OperatorError(
                f"strategy='folded' cannot trace {found[0]} where it is called as "
                f"torch.ops.aten.{found[0]}, or through torch._C: torch crashes; call "
                f"torch.nn.functional.{found[0]}, or take strategy='auto'."
            )


@final
class Fold:
    """A program whose constants have been computed.

    Parameters
    ----------
    traced : the whole program, a function of v
    recorder : what records the program's work, where that is worth it

    Raises
    ------
    OperatorError
        The program writes into memory in a way that cannot be followed.
    """

    def __init__(self, traced: fx.GraphModule, recorder: Recorder | None = None) -> None:
        traced.graph.eliminate_dead_code()
        linear = _depending_on_inputs(traced.graph)
        writers = [n for n in linear if _writes(n)]
        if writers:
            raise OperatorError(
                f"strategy='folded' cannot hold {writers[0].target} still, which writes into its "
                "argument; take strategy='auto'."
            )
        program = _remaining(traced, linear, _evaluated(traced, linear))
        simplify(program)
        # Modules and their graphs refer to each other: what is large is taken out of that circle.
        self._constants = SimpleNamespace(**taken_out(program))
        self._product: Callable[..., Sequence[Tensor]] = partial(
            type(program).forward, self._constants
        )
        if recorder is not None:
            self._product = Captured(self._product, recorder)
        tensors = [x for x in vars(self._constants).values() if isinstance(x, Tensor)]
        self.nbytes = sum(storage_sizes(tensors).values())
        self.operations = [str(node.target) for node in program.graph.nodes]

    def __call__(self, *pieces: Tensor) -> tuple[Tensor, ...]:
        """The product with v, given and returned parameter by parameter."""
        with torch.no_grad():
            return tuple(self._product(*pieces))


@final
class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own
    """The names of the operations that run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def _depending_on_inputs(graph: fx.Graph) -> dict[fx.Node, None]:
    """The nodes that v goes into, in order."""
    linear: dict[fx.Node, None] = {}
    for node in graph.nodes:
        reads = any(source in linear for source in node.all_input_nodes)
        if node.op == "placeholder" or (reads and node.op != "output"):
            linear[node] = None
    return linear


def _writes(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def _evaluated(traced: fx.GraphModule, linear: dict[fx.Node, None]) -> dict[fx.Node, Any]:
    """The values of the other nodes that the linear ones read, as they were when read.

    Every other value is let go after its last use.
    """
    interpreter = fx.Interpreter(traced)
    values = interpreter.env
    last = {source: node for node in traced.graph.nodes for source in node.all_input_nodes}
    constants: dict[fx.Node, Any] = {}
    written: set[fx.Node] = set()  # constants that the program overwrites after they were read
    for node in traced.graph.nodes:
        sources = [source for source in node.all_input_nodes if source not in linear]
        if node in linear or node.op == "output":
            if written.intersection(sources):
                raise OperatorError(
                    f"strategy='folded' cannot follow how {node.target} shares memory with what "
                    "is written later; take strategy='auto'."
                )
            constants |= {source: values[source] for source in sources}
        else:
            if _writes(node):
                written |= _separated(constants, [values[source] for source in sources])
            values[node] = interpreter.run_node(node)
        for source in sources:
            if last[source] is node:
                values.pop(source, None)
    return constants


def _separated(constants: dict[fx.Node, Any], arguments: list[Any]) -> set[fx.Node]:
    """Copy the constants that lie in the memory of these arguments; which ones they were."""
    places = storage_sizes(x for x in arguments if isinstance(x, Tensor)).keys()
    shared = {
        source
        for source, x in constants.items()
        if isinstance(x, Tensor) and storage_sizes([x]).keys() & places
    }
    constants.update({source: constants[source].clone() for source in shared})
    return shared


def _remaining(
    traced: fx.GraphModule, linear: dict[fx.Node, None], constants: dict[fx.Node, Any]
) -> fx.GraphModule:
    """The program of the linear nodes alone."""
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    held = {f"constant{j}": x for j, x in enumerate(constants.values())}
    for source, name in zip(constants, held, strict=True):
        copies[source] = graph.get_attr(name)
        copies[source].meta["val"] = held[name]
    for node in traced.graph.nodes:
        if node in linear or node.op == "output":
            copies[node] = graph.node_copy(node, copies.__getitem__)
    return fx.GraphModule(held, graph)
