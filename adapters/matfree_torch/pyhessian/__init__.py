"""Programs written for PyHessian, with one line changed.

    from matfree_torch.pyhessian import hessian, get_esd_plot

The names, the arguments and the shapes of results are those of PyHessian; what stands behind
them is this package. Where a meaning had to change:

- The model's mode is the caller's, where PyHessian switched it to ``eval()`` for good; a layer
  that this makes a difference to is refused or warned of. Gradients, buffers and the random
  state are left alone too, and so is the backend of matplotlib.
- ``tol`` bounds the residual of an eigenpair relative to ||H||, and half of the trace's 95 %
  interval relative to it, not the change from one iteration to the next; where ``maxIter`` ends
  first a ConvergenceWarning says how far it got (it calls the budget ``max_matvecs``). A trace
  known to 1e-3 takes far more than 100 probes; pass the tolerance that you need.
- Eigenvalues are sorted by magnitude, and none of several equal ones is missed.
- Batches are weighted by what the loss divides by, class weights and ignored targets included,
  where PyHessian counted samples.
- Probes are counted from ``seed``, fresh in every call without one.
- Tensors go to where the model is; ``cuda=True`` only makes sure that this is a GPU.

References
----------
Z. Yao, A. Gholami, K. Keutzer, M. W. Mahoney (2020), PyHessian: neural networks through the
lens of the Hessian, arXiv:1912.07145.
"""

from matfree_torch.pyhessian.activations import ActivationComputation, hessian_with_activation
from matfree_torch.pyhessian.hessian import (
    HessianComputation,
    get_esd_plot,
    get_params_grad,
    hessian,
)

__all__ = [
    "ActivationComputation",
    "HessianComputation",
    "get_esd_plot",
    "get_params_grad",
    "hessian",
    "hessian_with_activation",
]
