"""The budget, the tolerances and the probes of an estimation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.algorithms.running.keywords import Sampling
from matfree.arguments import block_size_for, require_tolerance, require_whole
from matfree.protocol import ProbeKind
from matfree.results import EigenResult

DEFAULT_PROBES = 32
"""The budget of matvecs if neither probes, nor a budget, nor a tolerance are given."""

STOPPING_WIDENING = 1.03
"""The factor by which intervals are widened if a tolerance decides when sampling stops.

A run stops sooner if its standard error happens to be small. Without the factor, the coverage would
be one percentage point lower than for a fixed number of probes.
"""

DEFAULT_BUDGET = 1000
"""The budget of matvecs if a tolerance is given without one."""


@final
@dataclass(frozen=True)
class Plan:
    """The budget, the tolerances and the probes of an estimation."""

    num_probes: int | None
    """A fixed number of probes; None if the budget and the tolerance determine it."""
    budget: int
    """The largest number of matvecs."""
    rtol: float | None
    atol: float | None
    block_size: int
    seed: int
    kind: ProbeKind
    eigenpairs: EigenResult | int = 0
    """For deflation: known eigenpairs, or how many to compute."""
    first_probe: int = 0
    """The index of the first probe among all probes of the seed."""

    @classmethod
    def make(
        cls,
        A: CountedOperator,
        options: Sampling[Any],
        *,
        seed: int,
        kind: ProbeKind = "rademacher",
        eigenpairs: EigenResult | int = 0,
    ) -> Plan:
        """Check the keywords that every estimator shares, and collect them in a plan.

        Parameters
        ----------
        A : CountedOperator
        options : Sampling
            The keywords of the public function.
        seed : int
        kind : str
            The distribution of the probes unless ``options`` names one.
        eigenpairs : EigenResult or int
            Known eigenpairs, or how many to compute.

        Raises
        ------
        ValueError
            A keyword is out of range, or a number of probes is given together with a
            tolerance or a budget.
        """
        num_probes, max_matvecs = options.get("num_probes"), options.get("max_matvecs")
        rtol, atol = options.get("rtol"), options.get("atol")
        for name, count in (("num_probes", num_probes), ("max_matvecs", max_matvecs)):
            require_whole(name, count)
        for name, tolerance in (("rtol", rtol), ("atol", atol)):
            require_tolerance(name, tolerance)
        adaptive = rtol is not None or atol is not None
        if num_probes is not None and (adaptive or max_matvecs is not None):
            raise ValueError(
                "give either num_probes (a fixed number) or rtol/atol with max_matvecs (as many "
                "as needed), not both."
            )
        # A known number of probes is divided into blocks of nearly equal width.
        block_size = A.block_size(options.get("block_size"))
        return cls(
            num_probes,
            max_matvecs or (DEFAULT_BUDGET if adaptive else DEFAULT_PROBES),
            rtol,
            atol,
            block_size_for(A.space.size, block_size, num_probes),
            seed,
            options.get("kind") or kind,
            eigenpairs,
            options.get("first_probe", 0),
        )

    def require_budget(self, least: int, unit: str) -> None:
        """Raise ValueError if the budget does not suffice for the smallest unit of work.

        Parameters
        ----------
        least : int
            The matvecs of one unit.
        unit : str
            What the unit is, for the error message.
        """
        if self.num_probes is None:
            require_budget(self.budget, least, unit)

    @property
    def adaptive(self) -> bool:
        """Whether a tolerance was given."""
        return self.rtol is not None or self.atol is not None

    @property
    def widening(self) -> float:
        """The factor of the sampling error in half-widths."""
        return STOPPING_WIDENING if self.adaptive else 1.0

    @property
    def looser(self) -> str:
        """The name of the tolerance that was given, for advice."""
        return "atol" if self.rtol is None else "rtol"

    def tolerance(self, size: float) -> float:
        """The half-width that an estimate of this absolute value has to reach."""
        return (self.atol or 0.0) + (self.rtol or 0.0) * size


def require_budget(budget: int, least: int, unit: str) -> None:
    """Raise ValueError if a budget of matvecs does not suffice for the smallest unit of work."""
    if budget < least:
        raise ValueError(
            f"max_matvecs={budget} is too small for {unit}, which takes {least} matvecs; pass "
            f"max_matvecs={least} or more."
        )
