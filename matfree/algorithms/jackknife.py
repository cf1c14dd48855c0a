r"""The matrix jackknife: error bars for estimators whose samples share their data.

The k basic estimates of a leave-one-out method all use nearly the same probes, so their
spread says too little about their mean. Leaving probe i out of the *whole* estimator
gives t_{-i}, and by Efron and Stein

    E sum_i (t_{-i} - mean)^2  >=  Var t_{k-1}:

the bar errs on the safe side.

References
----------
E. N. Epperly, J. A. Tropp (2024), Efficient error and variance estimation for randomized
matrix computations, arXiv:2207.06342. B. Efron, C. Stein (1981), doi:10.1214/aos/1176345462.
"""

from __future__ import annotations

import math

import numpy as np

from matfree.algorithms.products import HostArray


def spread(left_out: HostArray) -> float:
    """sqrt(sum_i |t_{-i} - mean|^2) of estimates without each probe; inf for a single one."""
    if left_out.size < 2:
        return math.inf
    return float(np.linalg.norm(left_out - left_out.mean()))
