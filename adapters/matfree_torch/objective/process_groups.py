"""The processes over which data and parameters are distributed."""

from __future__ import annotations

import math

from matfree import OperatorError
from matfree_torch.distributed.collectives import Communicator
from matfree_torch.distributed.dtensors import require_disjoint


class ProcessGroups:
    """The processes of a computation.

    Parameters
    ----------
    communicator : Communicator, optional
        The processes among which the data are divided.
    mesh_communicator : Communicator, optional
        The processes over which parameters are sharded; they compute each batch together.
    """

    def __init__(
        self, communicator: Communicator | None, mesh_communicator: Communicator | None
    ) -> None:
        self.communicator, self.mesh_communicator = communicator, mesh_communicator
        require_disjoint(mesh_communicator, communicator)

    def require_single_process(self, what: str) -> None:
        """Raise OperatorError if data or parameters are distributed over processes."""
        if self.communicator is not None or self.mesh_communicator is not None:
            raise OperatorError(
                f"{what} is computed by a single process, but batches or parameters are "
                "distributed over several, and each process sees only its own; use an unsharded "
                "model and all the data in one process."
            )

    def require_unsharded(self, what: str) -> None:
        """Raise OperatorError if parameters are sharded."""
        if self.mesh_communicator is not None:
            raise OperatorError(
                f"{what} cannot be computed for sharded parameters, because activations are "
                "sharded as well; load the weights into an unsharded model."
            )

    @property
    def num_sharing_memory(self) -> int:
        """An upper bound on the number of processes of this computation that share one memory."""
        groups = (self.communicator, self.mesh_communicator)
        return math.prod(group.num_sharing_memory for group in groups if group is not None)

    def gather_over_mesh(self, number: int) -> list[int]:
        """A number of every process that computes the same batches, so that all decide alike."""
        if self.mesh_communicator is None:
            return [number]
        return self.mesh_communicator.all_gather_object(lambda: number)
