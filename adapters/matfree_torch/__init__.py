"""PyTorch tensors as matrices, and the curvature of networks as operators.

``matfree.aslinearoperator`` finds this package by its entry point when it first meets a
tensor; the curvatures are imported from here.
"""

from matfree_torch.activation import ActivationHessian
from matfree_torch.activations import SharedActivationHessian, activation_hessian
from matfree_torch.curvature import BlockOperator
from matfree_torch.directions import towards
from matfree_torch.following import Follower, follow_training
from matfree_torch.gaussnewton import GaussNewtonOperator
from matfree_torch.ggn import fisher, ggn
from matfree_torch.hessian import HessianOperator, hessian, hessian_of
from matfree_torch.history import TrainingHistory
from matfree_torch.jackknife import BatchJackknife
from matfree_torch.kept import GraphMemory
from matfree_torch.landscape import LossLandscape, loss_landscape
from matfree_torch.processes import LostProcessError
from matfree_torch.sharded import ShardedCurvature, ShardedSpace
from matfree_torch.tensors import adapt
from matfree_torch.traces import activation_traces
from matfree_torch.variation import batch_jackknife

__all__ = [
    "ActivationHessian",
    "BatchJackknife",
    "BlockOperator",
    "Follower",
    "GaussNewtonOperator",
    "GraphMemory",
    "HessianOperator",
    "LossLandscape",
    "LostProcessError",
    "ShardedCurvature",
    "ShardedSpace",
    "SharedActivationHessian",
    "TrainingHistory",
    "activation_hessian",
    "activation_traces",
    "adapt",
    "batch_jackknife",
    "fisher",
    "follow_training",
    "ggn",
    "hessian",
    "hessian_of",
    "loss_landscape",
    "towards",
]
