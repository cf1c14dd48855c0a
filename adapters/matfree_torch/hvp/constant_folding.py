r"""Hessian-vector products as traced programs in which everything but v is a constant.

The derivative of the gradient along v is traced operation by operation. All operations that do
not depend on v are evaluated once, and their results become constants: the forward pass, the
backward pass and every factor computed from them. The remaining program is linear in v.
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
from matfree_torch.hvp.cuda_graphs import CapturedProgram, Recorder, recorder_for
from matfree_torch.hvp.graph_cache import CachePolicy
from matfree_torch.hvp.graph_rewrites import simplify, take_constants
from matfree_torch.hvp.strategies import HvpStrategy, explain_unsupported, gradient_along
from matfree_torch.objective import isolation
from matfree_torch.objective.batches import Batch
from matfree_torch.objective.objective import Objective
from matfree_torch.vectors.layout import Layout

_CRASHING = ("mse_loss",)
"""Operations that crash the interpreter if the derivative of their backward is traced."""


@final
class FoldedForwardOverReverse(HvpStrategy):
    """Forward over reverse, traced and folded once for each batch; on a GPU replayed as a graph.

    A folded program, and the CUDA graph captured from it, is discarded with its batch.

    Parameters
    ----------
    objective, layout : as for every strategy
    memory : int, optional
        Bytes that the constants may take.
    """

    def __init__(self, objective: Objective, layout: Layout, memory: int | None) -> None:
        super().__init__(objective, layout)
        self.cache_policy = CachePolicy(memory, "folds")
        self._recorder = recorder_for(layout.device)

    def prepare(self, batch: Batch) -> FoldedProgram:
        along = gradient_along(self.objective, batch, self.layout)
        names = self.layout.names

        def multiply(*v: Tensor) -> tuple[Tensor, ...]:
            return along(dict(zip(names, v, strict=True)), self.layout)

        example = [torch.zeros_like(x.detach()) for x in self.layout.tensors]
        with self.objective.isolated(), decomposed_losses(), explain_unsupported("folded"):
            self._refuse_crashing_operations(batch)
        # A context of its own, because every evaluation starts from the same state.
        with self.objective.isolated(), decomposed_losses(), explain_unsupported("folded"):
            # Functionalization removes in-place operations. Otherwise a product could overwrite a
            # constant that later products need.
            program = make_fx(torch.func.functionalize(multiply))(*example)
            drawn = self._generator_states()
        # Folding runs the forward pass again, with the same random numbers.
        with self.objective.isolated(), torch.no_grad():
            folded = FoldedProgram(program, self._recorder)
            same = all(map(torch.equal, drawn, self._generator_states()))
        if not same and any(map(_draws, program.graph.nodes)):
            raise OperatorError(
                "strategy='folded' cannot fold random numbers of a generator that the model or the "
                "loss seeds or restores itself (manual_seed, fork_rng); pass strategy='auto'."
            )
        return folded

    def _generator_states(self) -> list[Tensor]:
        """The states of torch's global generators, which change with every number drawn."""
        states = isolation.get_random_state(self.objective.state.modules).values()
        return [state for state in states if isinstance(state, Tensor)]

    def multiply(
        self, prepared: FoldedProgram, v: dict[str, Tensor], rows: Layout
    ) -> tuple[Tensor, ...]:
        tensors = zip(self.layout.names, self.layout.tensors, strict=True)
        inputs = [v[n] if n in v else torch.zeros_like(x) for n, x in tensors]
        along = dict(zip(self.layout.names, prepared(*inputs), strict=True))
        return tuple(along[name] for name in rows.names)

    def _refuse_crashing_operations(self, batch: Batch) -> None:
        """Search a forward pass for operations whose trace would crash the interpreter."""
        recorded = _OperationNames()
        with recorded:
            self.objective.finite_value(self.objective.outputs(batch), batch.targets)
        found = [name for name in _CRASHING if name in recorded.names]
        if found:
            raise OperatorError(
                f"strategy='folded' cannot trace {found[0]} if it is called as "
                f"torch.ops.aten.{found[0]} or through torch._C, because torch crashes; call "
                f"torch.nn.functional.{found[0]} instead, or pass strategy='auto'."
            )


@final
class FoldedProgram:
    """A traced Hessian-vector product with its constants evaluated.

    Parameters
    ----------
    traced : fx.GraphModule
        The whole program, a function of v.
    recorder : Recorder, optional
        Captures the folded program, on devices on which replaying it is faster.

    Raises
    ------
    OperatorError
        The program writes to memory in a way that cannot be followed.
    """

    def __init__(self, traced: fx.GraphModule, recorder: Recorder | None = None) -> None:
        traced.graph.eliminate_dead_code()
        linear = _nodes_depending_on_inputs(traced.graph)
        drawing = [n for n in traced.graph.nodes if n.kwargs.get("generator") is not None]
        if drawing:  # the evaluation of the constants would draw other numbers than the trace
            raise OperatorError(
                f"strategy='folded' cannot fold {drawing[0].target} with a torch.Generator of the "
                "model; pass strategy='auto'."
            )
        writers = [n for n in linear if _writes(n)]
        if writers:
            raise OperatorError(
                f"strategy='folded' cannot fold {writers[0].target}, which writes to its "
                "argument; pass strategy='auto'."
            )
        program = _remaining_program(traced, linear, _evaluate_constants(traced, linear))
        simplify(program)
        # A module and its graph refer to each other, so that only the garbage collector frees
        # them. The constants are moved out of that cycle, to be freed with the last reference.
        self._constants = SimpleNamespace(**take_constants(program))
        self._run: Callable[..., Sequence[Tensor]] = partial(type(program).forward, self._constants)
        if recorder is not None:
            self._run = CapturedProgram(self._run, recorder)
        tensors = [x for x in vars(self._constants).values() if isinstance(x, Tensor)]
        self.nbytes = sum(storage_sizes(tensors).values())
        self.operations = [str(node.target) for node in program.graph.nodes]

    def __call__(self, *v: Tensor) -> tuple[Tensor, ...]:
        """Return H v, with one tensor for each parameter in v and in the result."""
        with torch.no_grad():
            return tuple(self._run(*v))


@final
class _OperationNames(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own
    """The names of the operations that run within the context."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def _nodes_depending_on_inputs(graph: fx.Graph) -> dict[fx.Node, None]:
    """The nodes that depend on v, in the order of the graph."""
    linear: dict[fx.Node, None] = {}
    for node in graph.nodes:
        reads = any(source in linear for source in node.all_input_nodes)
        if node.op == "placeholder" or (reads and node.op != "output"):
            linear[node] = None
    return linear


def _writes(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def _draws(node: fx.Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _evaluate_constants(traced: fx.GraphModule, linear: dict[fx.Node, None]) -> dict[fx.Node, Any]:
    """The values of the nodes that do not depend on v and that linear nodes read.

    A constant has the value that it has at the moment it is read. Intermediate values are freed
    after their last use.
    """
    interpreter = fx.Interpreter(traced)
    values = interpreter.env
    last_reader = {source: node for node in traced.graph.nodes for source in node.all_input_nodes}
    constants: dict[fx.Node, Any] = {}
    overwritten: set[fx.Node] = set()  # constants that the program overwrites after reading them
    for node in traced.graph.nodes:
        sources = [source for source in node.all_input_nodes if source not in linear]
        if node in linear or node.op == "output":
            if overwritten.intersection(sources):
                raise OperatorError(
                    f"strategy='folded' cannot fold {node.target}, which shares memory with a "
                    "tensor that is written to later; pass strategy='auto'."
                )
            constants |= {source: values[source] for source in sources}
        else:
            if _writes(node):
                overwritten |= _copy_aliased(constants, [values[source] for source in sources])
            values[node] = interpreter.run_node(node)
        for source in sources:
            if last_reader[source] is node:
                values.pop(source, None)
    return constants


def _copy_aliased(constants: dict[fx.Node, Any], arguments: list[Any]) -> set[fx.Node]:
    """Copy the constants that share memory with these arguments, and return their nodes."""
    written = storage_sizes(x for x in arguments if isinstance(x, Tensor)).keys()
    aliased = {
        source
        for source, x in constants.items()
        if isinstance(x, Tensor) and storage_sizes([x]).keys() & written
    }
    constants.update({source: constants[source].clone() for source in aliased})
    return aliased


def _remaining_program(
    traced: fx.GraphModule, linear: dict[fx.Node, None], constants: dict[fx.Node, Any]
) -> fx.GraphModule:
    """The program that consists only of the linear nodes and reads the constants."""
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    values = {f"constant{j}": x for j, x in enumerate(constants.values())}
    for source, name in zip(constants, values, strict=True):
        copies[source] = graph.get_attr(name)
        copies[source].meta["val"] = values[name]
    for node in traced.graph.nodes:
        if node in linear or node.op == "output":
            copies[node] = graph.node_copy(node, copies.__getitem__)
    return fx.GraphModule(values, graph)
