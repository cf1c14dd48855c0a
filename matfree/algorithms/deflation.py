"""One set of eigenpairs for trace, diagonal and density: given, or computed on the spot."""

from __future__ import annotations

import warnings

from matfree.algorithms.eigsh import eigsh
from matfree.algorithms.plan import Plan
from matfree.algorithms.products import Products
from matfree.errors import ConvergenceWarning
from matfree.results import EigenResult

ROUGH = 1e-3
"""Residual, relative to ||A||, at which computed pairs are good enough to deflate with. At
1e-2 the smaller outliers of a spectrum that spans two decades are not told from its bulk,
and the bars grow by a half; below 1e-3 nothing is gained."""


def eigenpairs_for(product: Products, plan: Plan, budget: int) -> tuple[EigenResult, int]:
    """The eigenpairs to deflate with, and the products that they cost here.

    Given ones are taken as they are: estimates stay unbiased however rough they may be,
    only their variance grows. Computed ones are the largest in magnitude, to a rough
    tolerance, for at most half of the budget.
    """
    eigenpairs = plan.eigenpairs
    if isinstance(eigenpairs, EigenResult):
        rows = len(product.space.rows)
        if eigenpairs.vectors.shape[0] != rows:
            raise ValueError(
                f"eigenpairs must have vectors of {rows} rows, like the operator: got "
                f"{tuple(eigenpairs.vectors.shape)}."
            )
        return eigenpairs, 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # rough is what was asked for
        pairs = eigsh(
            product.operator,
            min(eigenpairs, product.space.size),
            rtol=ROUGH,
            max_matvecs=None if plan.num_probes is not None else max(1, budget // 2),
            verify=False,
            seed=plan.seed,
        )
    product.num_matvecs += pairs.num_matvecs
    return pairs, pairs.num_matvecs
