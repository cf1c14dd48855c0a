"""Estimation by the Lanczos quadrature of every probe, with its shared keywords."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from matfree.algorithms.krylov.recurrence import Reorthogonalize
from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.algorithms.running.keywords import Sampling
from matfree.algorithms.running.plan import Plan
from matfree.algorithms.running.sampling_loop import sample
from matfree.algorithms.spectra.quadrature_estimators import QuadratureEstimator
from matfree.arguments import require_whole
from matfree.quadratures.brackets import Spectrum
from matfree.results import EigenResult, Estimate

DEFAULT_STEPS = 40
"""Lanczos steps per probe, unless the caller or a tolerance determines them."""

_NUM_PROBES = 10
"""The default number of probes. It is smaller than for traces: each costs num_steps matvecs."""


class QuadratureSampling(Sampling[Estimate], total=False):
    """Keywords of every estimator by Lanczos quadrature; see ``matfree.trace_function``."""

    num_steps: int | None
    reorthogonalize: Reorthogonalize
    memory: int | None
    eigenpairs: EigenResult | int


class FunctionSampling(QuadratureSampling, total=False):
    """Keywords of the traces of functions; see ``matfree.trace_function``."""

    spectrum: Spectrum | None


def sample_quadratures(
    A: Any,
    make: Callable[..., QuadratureEstimator],
    options: QuadratureSampling,
    *,
    reorthogonalize: Reorthogonalize,
) -> Estimate:
    """Run an estimator by Lanczos quadrature over random probes.

    Parameters
    ----------
    A : anything ``aslinearoperator`` accepts
    make : function
        Constructs the estimator from ``A``, ``plan``, ``num_steps`` and ``reorthogonalize``.
    options : QuadratureSampling
        The keywords of the public function.
    reorthogonalize : the value unless ``options`` says otherwise
    """
    num_steps = options.get("num_steps")
    require_whole("num_steps", num_steps)
    if all(options.get(key) is None for key in ("num_probes", "rtol", "atol", "max_matvecs")):
        options = {**options, "num_probes": _NUM_PROBES}

    def fitted(A: CountedOperator, plan: Plan) -> QuadratureEstimator:
        estimator = make(
            A=A,
            plan=plan,
            num_steps=num_steps or DEFAULT_STEPS,
            reorthogonalize=options.get("reorthogonalize", reorthogonalize),
        )
        copied = options.get("checkpoint") is not None
        estimator.fit_into(options.get("memory"), copied=copied)
        return estimator

    pairs = options.get("eigenpairs", 0)
    if not isinstance(pairs, EigenResult) and pairs != 0:
        require_whole("eigenpairs, unless it is an EigenResult,", pairs)
    return sample(CountedOperator(A), fitted, options, eigenpairs=pairs)
