"""PyTorch adapter: tensors as matrices, and the curvature of networks as operators.

``matfree.aslinearoperator`` loads this package through its entry point when it first gets a
tensor. The curvatures, such as :func:`hessian`, are imported from here.

The package may import ``matfree`` and its public modules, but not ``matfree.algorithms`` or another
adapter. Its own packages import in one direction, each only those on later lines::

    cli                the command ``matfree network``
    pyhessian          PyHessian's API
    analysis           studies of a network
    activations        curvature with respect to activations
    curvature          curvature with respect to parameters, as operators
    derivative_checks  tests whether torch's second derivatives are correct
    hvp                strategies for Hessian-vector products
    objective          a loss over data, without side effects on the model
    data               one batch: its structure, tensors and weight
    autograd           torch's derivatives, corrected or faster
    vectors            named tensors as one flat vector
    distributed        collectives and sharded vectors

Neither ``activations`` and ``analysis`` nor ``vectors`` and ``autograd`` import each other.
"""

from matfree_torch.activations.activation_hessian import activation_hessian
from matfree_torch.activations.activation_traces import activation_traces
from matfree_torch.activations.operator import ActivationHessian
from matfree_torch.activations.shared_operator import SharedActivationHessian
from matfree_torch.analysis.batch_jackknife import batch_jackknife
from matfree_torch.analysis.batch_jackknife_result import BatchJackknife
from matfree_torch.analysis.directions import towards
from matfree_torch.analysis.follower import Follower
from matfree_torch.analysis.landscape import loss_landscape
from matfree_torch.analysis.landscape_result import LossLandscape
from matfree_torch.analysis.training import follow_training
from matfree_torch.analysis.training_history import TrainingHistory
from matfree_torch.curvature.fisher import fisher
from matfree_torch.curvature.gauss_newton import GaussNewtonOperator
from matfree_torch.curvature.ggn import ggn
from matfree_torch.curvature.hessian import HessianOperator, hessian
from matfree_torch.curvature.hessian_of import hessian_of
from matfree_torch.curvature.operator import BlockOperator
from matfree_torch.curvature.sharded import ShardedCurvature
from matfree_torch.distributed.collectives import LostProcessError
from matfree_torch.distributed.space import ShardedSpace
from matfree_torch.hvp.graph_cache import GraphMemory
from matfree_torch.tensors import adapt

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
