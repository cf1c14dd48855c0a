"""The sampling loop behind ``spectral_density``, which collects a quadrature per probe."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal, TypeAlias, final

import numpy as np

from matfree import probes
from matfree.algorithms.krylov.memory_plan import (
    MemoryModel,
    StorageScheme,
    choose_storage,
    vector_bytes,
)
from matfree.algorithms.krylov.recurrence import Reorthogonalize
from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.algorithms.running.run import Run
from matfree.algorithms.running.state_file import discard
from matfree.algorithms.spectra.deflated_operator import DeflatedOperator
from matfree.algorithms.spectra.gauss_quadrature import LanczosQuadrature
from matfree.algorithms.spectra.kpm import BOUND_STEPS, KernelPolynomial
from matfree.arguments import block_size_for
from matfree.arrays import epsilon
from matfree.protocol import HostArray, ProbeKind
from matfree.results import EigenResult, Quadrature, SpectralDensity, StoppingReason
from matfree.spaces import VectorSpace

DensityMethod: TypeAlias = Literal["lanczos", "kpm"]

_BASIS_BYTES = 1 << 30  # memory for Lanczos vectors, which determines the default block size
_MAX_DEFAULT_BLOCK = 8  # probes


@final
class DensityRun:
    """The spectral density from the quadratures of the probes so far.

    Parameters
    ----------
    A : CountedOperator
    run : Run
        Progress, callback and checkpoint.
    kind : str
        The distribution of the probes.
    first_probe : int
    measure_noise : bool
        Whether to repeat one matvec.
    storage : Storage
        The block size, and how Lanczos vectors are stored.
    """

    saved = ("rule_arrays", "A", "deflated", "quadrature", "storage_error", "recurrences")
    stored_as: ClassVar = {"A": "product", "deflated": "complement", "rule_arrays": "parts"}

    def __init__(
        self,
        A: CountedOperator,
        run: Run[SpectralDensity],
        kind: ProbeKind,
        first_probe: int,
        measure_noise: bool,
        storage: StorageScheme,
    ) -> None:
        self.A, self.space, self.run = A, A.space, run
        self.seed, self.kind = run.checkpoint.seed, kind
        self.first_probe, self.measure_noise = first_probe, measure_noise
        self.deflated = DeflatedOperator(A, seed=self.seed)
        self.quadrature: LanczosQuadrature | KernelPolynomial | None = None
        self.rules: list[Quadrature] = []
        self.recurrences: list[HostArray] = []
        self.storage_error = 0.0
        self.storage = storage

    @property
    def rule_arrays(self) -> tuple[HostArray, ...]:
        """The quadratures as arrays (3, steps), in which form a checkpoint stores them."""
        return tuple(np.stack(rule) for rule in self.rules)

    @rule_arrays.setter
    def rule_arrays(self, stored: tuple[HostArray, ...]) -> None:
        self.rules = [Quadrature(*array) for array in stored]

    def _problem(
        self, method: DensityMethod, num_steps: int, eigenpairs: EigenResult | int
    ) -> dict[str, Any]:
        """The arguments that a checkpoint must have in common with this run."""
        return {
            "estimator": "spectral_density",
            "method": method,
            "seed": self.seed,
            "kind": self.kind,
            "first_probe": self.first_probe,
            "num_steps": num_steps,
            "reorthogonalize": "full" if method == "kpm" else self.storage.reorthogonalize,
            "eigenpairs": "given" if isinstance(eigenpairs, EigenResult) else eigenpairs,
            "measure_noise": self.measure_noise,
        }

    def prepare(
        self,
        eigenpairs: EigenResult | int,
        method: DensityMethod,
        num_steps: int,
    ) -> None:
        """Deflate the eigenpairs, and set up the quadrature of the deflated operator."""
        checkpoint = self.run.checkpoint
        checkpoint.resume(self._problem(method, num_steps, eigenpairs), self)
        given = isinstance(eigenpairs, EigenResult)
        path = None if given or not eigenpairs else checkpoint.sibling(".eigenpairs")
        self.deflated.find(eigenpairs, path)
        self.run.save()
        if path is not None:
            discard(path, self.space, self.seed)
        if method == "kpm" and self.deflated.size:
            self.quadrature = KernelPolynomial(self.deflated, num_steps, seed=self.seed)
        else:
            self.quadrature = LanczosQuadrature(
                self.deflated, num_steps, self.storage.reorthogonalize
            )
        if method == "kpm":
            checkpoint.resume_object("quadrature", self.quadrature)
        if self.measure_noise:
            self.A.watch()

    def complete(self, num_probes: int) -> SpectralDensity:
        """The density from all probes, or from those done when the callback stops the run."""
        while len(self.rules) < num_probes:
            self.advance(min(self.storage.at_once, num_probes - len(self.rules)))
            self.run.bar.show(len(self.rules))
            if self.run.is_stopped(lambda: self.result(StoppingReason.RUNNING)):
                return self.result(StoppingReason.CALLBACK)
        return self.result(StoppingReason.ALL_PROBES)

    def interrupted(self) -> SpectralDensity | None:
        """The density when the user interrupts the run; None before the first probe."""
        return self.result(StoppingReason.INTERRUPTED) if self.rules else None

    def advance(self, count: int) -> None:
        """Add the quadratures of ``count`` more probes."""
        V = self.deflated.probes(
            count,
            seed=self.seed,
            start=self.first_probe + len(self.rules),
            kind=self.kind,
            stream=probes.PROBES,
        )
        assert self.quadrature is not None
        fresh = self.quadrature(V, self.run.checkpoint)
        self.storage_error = max(self.storage_error, self.quadrature.node_error)
        if self.measure_noise:
            self.A.measure_noise()
        self.rules.extend(map(self.deflated.with_known, fresh))
        self.recurrences.extend(self.quadrature.coefficients)
        self.run.save()

    def result(self, reason: StoppingReason) -> SpectralDensity:
        """The density from the probes so far."""
        assert self.quadrature is not None
        # Extreme Ritz values estimate ||A||, which makes the errors below relative.
        norm = max(abs(rule.nodes[end]) for rule in self.rules for end in (0, -1))
        return SpectralDensity(
            nodes=tuple(rule.nodes for rule in self.rules),
            weights=tuple(rule.weights for rule in self.rules),
            residuals=tuple(rule.residuals for rule in self.rules),
            size=self.space.size,
            num_steps=self.quadrature.num_steps,
            num_matvecs=self.A.num_matvecs,
            epsilon=epsilon(self.space.xp, self.space.dtype),
            seed=self.seed,
            kind=self.kind,
            probe_ranges=((self.first_probe, self.first_probe + len(self.rules)),),
            reason=reason,
            method=self.quadrature.method,
            reorthogonalize=self.quadrature.reorthogonalize,
            known=self.deflated.values,
            noise=float(self.A.noise / norm) if norm > 0 else 0.0,
            storage_error=self.storage_error / norm if norm > 0 else 0.0,
            memory=self.storage.memory,
            recurrences=tuple(self.recurrences),
        )


def density_storage(
    A: CountedOperator,
    method: DensityMethod,
    num_steps: int,
    num_probes: int,
    *,
    eigenpairs: EigenResult | int,
    block_size: int | None,
    reorthogonalize: Reorthogonalize,
    memory: int | None,
    copied: bool,
    repeated: bool,
) -> StorageScheme:
    """The number of probes per block, and how their Lanczos vectors are stored.

    Parameters
    ----------
    A : CountedOperator
    method, num_steps, num_probes, eigenpairs, block_size, reorthogonalize, memory
        As for :func:`matfree.spectral_density`.
    copied : bool
        Whether there is a checkpoint, whose arrays are copied when they are written.
    repeated : bool
        Whether a matvec is repeated, which needs additional vectors.
    """
    space = A.space
    kpm, steps = method == "kpm", min(num_steps, space.size)
    most = A.block_size(None) or _MAX_DEFAULT_BLOCK
    block = block_size or _default_block(space, 4 if kpm else steps, most)
    block = block_size_for(space.size, block)
    if memory is not None and block_size is None:  # ``memory`` replaces _BASIS_BYTES
        block = most
    wanted = StorageScheme(
        "none" if kpm else reorthogonalize, min(block, num_probes), keep_basis=False
    )
    num_projected, kept, before = _of_eigenpairs(space, eigenpairs)
    need = MemoryModel(
        space,
        steps,
        num_vectors=kept,
        num_projected=num_projected,
        bytes_before=before,
        checkpointed=copied,
        measures_noise=repeated,
    )
    if kpm:
        interval = replace(need, num_steps=min(BOUND_STEPS, space.size))
        need = replace(
            need, bytes_before=interval.peak_bytes(StorageScheme("full", 1, keep_basis=False))
        )
    return choose_storage(need, wanted, memory)


def _of_eigenpairs(space: VectorSpace, eigenpairs: EigenResult | int) -> tuple[int, int, int]:
    """The number of known pairs, the vectors that they need, and the bytes to compute them."""
    if isinstance(eigenpairs, EigenResult):
        k = len(eigenpairs.values)
        return k, 2 * k, 0  # those of the caller and their copy in this space
    k, n = eigenpairs if isinstance(eigenpairs, int) else 0, space.size  # checked later
    if k < 1:
        return 0, 0, 0
    vectors = min(n, max(20, 4 * k + 8)) + 2 * k + 32  # the cost of ``eigsh`` in single precision
    return k, k, vectors * vector_bytes(space)


def _default_block(space: VectorSpace, vectors_kept: int, most: int) -> int:
    """The number of probes, up to ``most``, whose Lanczos vectors fit into _BASIS_BYTES."""
    # All processes must use the same block size, also if they have different numbers of rows.
    rows = max(space.all_gather_object(lambda: len(space.rows)))
    bytes_per_probe = vectors_kept * rows * space.xp.finfo(space.dtype).bits // 8
    return int(max(1, min(most, _BASIS_BYTES // max(1, bytes_per_probe))))
