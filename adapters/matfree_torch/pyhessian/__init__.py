"""PyHessian's API, for programs written for PyHessian. Only the import changes::

    from matfree_torch.pyhessian import hessian, get_esd_plot

Names, arguments and the shapes of results are those of PyHessian, and its modules can be imported
under their names (``utils``, ``hessian_with_activation``, ``density_plot``). The classes may be
subclassed. The computations are those of this package. The following differs, because
PyHessian's meaning had to change:

- The model keeps its mode, whereas PyHessian switches it to ``eval()`` permanently. If the mode
  makes a difference to a layer, there is an error or a warning. Gradients, buffers, the random
  state and matplotlib's backend are not changed either.
- ``tol`` bounds the residual of an eigenpair relative to ||H||, and the half-width of the 95 %
  interval of the trace relative to the trace, instead of the change between two iterations. If
  ``maxIter`` ends a computation first, a ConvergenceWarning reports the accuracy reached. The
  warning calls the budget ``max_matvecs``. A trace to 1e-3 takes far more than 100 probes, so
  pass the tolerance that you need.
- Eigenvalues are sorted by magnitude, and all of several equal ones are found.
- The weight of a batch is what the loss divides by, which includes class weights and ignored
  targets, whereas PyHessian counts samples.
- Probes are determined by ``seed``. Without a seed every call draws new ones.
- The activation Hessian of a layer is that of the layer's own input. On residual branches,
  PyHessian differentiates the gradient with respect to this input through the other branches as
  well, which is no Hessian; a warning says so once. The first layer is included.
- If no name ends in "conv", ``insert_hook("conv")`` takes "conv1", "conv2" ..., with a warning.
- Random vectors of activations consist of signs, not of zeros and ones.
- Tensors are moved to the device of the model. ``cuda=True`` only checks that this is a GPU.

References
----------
Z. Yao, A. Gholami, K. Keutzer, M. W. Mahoney (2020), PyHessian: neural networks through the
lens of the Hessian, arXiv:1912.07145.
"""

from matfree_torch.pyhessian.density_plot import get_esd_plot
from matfree_torch.pyhessian.hessian import HessianComputation, hessian
from matfree_torch.pyhessian.hessian_with_activation import (
    ActivationComputation,
    hessian_with_activation,
)
from matfree_torch.pyhessian.utils import (
    get_params_grad,
    group_add,
    group_product,
    hessian_vector_product,
    normalization,
    orthnormal,
)

__all__ = [
    "ActivationComputation",
    "HessianComputation",
    "get_esd_plot",
    "get_params_grad",
    "group_add",
    "group_product",
    "hessian",
    "hessian_vector_product",
    "hessian_with_activation",
    "normalization",
    "orthnormal",
]
