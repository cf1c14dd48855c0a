"""The sections of a study; each runs one algorithm and reports its result.

The modules may import ``matfree.cli.study`` and ``matfree.cli.report``, but not the commands.
"""

from __future__ import annotations

import dataclasses
import time
import warnings

from matfree.cli.report.document import ReportBuilder
from matfree.cli.sections.base import StudySection
from matfree.cli.sections.density import DensitySection
from matfree.cli.sections.diagonal import DiagonalSection
from matfree.cli.sections.power import PowerSection
from matfree.cli.sections.singular import SingularSection
from matfree.cli.sections.trace import TraceSection
from matfree.cli.study import Study
from matfree.errors import ConvergenceWarning

__all__ = ["add_sections"]


def add_sections(study: Study, report: ReportBuilder) -> None:
    """Run every algorithm that applies to an operator, and add a section for each.

    Parameters
    ----------
    study : Study
        If its operator is not Hermitian, only the trace and the diagonal are estimated; if it
        is rectangular, the singular values and the Frobenius norm.
    report : ReportBuilder, with the operator's chapter open
    """
    kinds: tuple[type[StudySection], ...] = (TraceSection, DiagonalSection)
    if study.hermitian:
        kinds = (PowerSection, *kinds, DensitySection)
    if study.operator.shape[0] != study.operator.shape[1]:
        kinds = (SingularSection,)
    for kind in kinds:
        begin = time.perf_counter()
        with warnings.catch_warnings():
            # The text of each section reports missing convergence itself.
            warnings.simplefilter("ignore", ConvergenceWarning)
            made = kind(study)
            section = made.build()
        if isinstance(made, PowerSection) and made.pairs.converged.all():
            study = dataclasses.replace(study, pairs=made.pairs)
        report.add_section(dataclasses.replace(section, seconds=time.perf_counter() - begin))
