"""The sections that every study has, each one algorithm shown at work."""

from __future__ import annotations

import dataclasses
import time
import warnings

from matfree.cli.report.document import Notebook
from matfree.cli.sections import density, diagonal, power, trace
from matfree.cli.study import Study
from matfree.errors import ConvergenceWarning

__all__ = ["write"]


def write(study: Study, notebook: Notebook) -> None:
    """Compute and report all there is to say of an operator.

    Parameters
    ----------
    study : Study
        Of an operator that is not Hermitian, the trace and the diagonal only.
    notebook : Notebook, with the operator's chapter open
    """
    everything = (power.section, trace.section, diagonal.section, density.section)
    for make in everything if study.hermitian else (trace.section, diagonal.section):
        begin = time.perf_counter()
        with warnings.catch_warnings():
            # Every section says in its own words what did not converge.
            warnings.simplefilter("ignore", ConvergenceWarning)
            section = make(study)
        notebook.add(dataclasses.replace(section, seconds=time.perf_counter() - begin))
