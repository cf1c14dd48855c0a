"""Linear systems: matvecs for the same true residual as SciPy's solvers, and with preconditioning.

SciPy's tolerances refer to other numbers than the true residual, so that each of its solvers is run
with tolerances 1, 1/2, 1/4, ... times 1e-6, and the first run counts whose true residual is within
1e-6. The matvec with which a user finds that out is counted in the last of its columns.
"""

import numpy as np
import scipy.sparse as sp
import scipy.sparse.linalg as sla
from support.matrices import complex_hermitian, laplacian_2d, with_spectrum

import matfree as mf

RTOL = 1e-6
COLUMNS = 8
LIMITS = {1e-5: 700, 1e-4: 360, 1e-3: 230}
"""The matvecs for eight systems with a network's Gauss-Newton matrix, by damping."""


def with_hermitian_spectrum(spectrum):
    """A complex Hermitian matrix with these eigenvalues."""
    Q = np.linalg.eigh(complex_hermitian(len(spectrum)))[1]
    A = (Q * spectrum) @ Q.conj().T
    return (A + A.conj().T) / 2


def kernel(n):
    """A Gaussian kernel matrix with a small multiple of the identity."""
    x = np.random.default_rng(0).random((n, 2))
    squares = ((x[:, None] - x[None, :]) ** 2).sum(-1)
    return np.exp(-squares / 0.08) + 1e-3 * np.eye(n)


def cycle(n):
    """The Laplacian of a cycle, which is singular."""
    shift = sp.eye_array(n).tocsr()[np.roll(np.arange(n), 1)]
    return (2 * sp.eye_array(n) - shift - shift.T).tocsr()


def matrices():
    """(name, SciPy's method, matrix, whether B is made compatible)."""
    rng = np.random.default_rng(1)
    n = 400
    singular = np.r_[np.zeros(20), np.geomspace(1, 100, n - 20)]
    both = np.r_[-np.geomspace(1, 10, 40), np.geomspace(1, 100, n - 40)]
    grid = laplacian_2d(40)
    tall = rng.standard_normal((n, 150)) * np.geomspace(1, 10, 150)
    return [
        ("well-conditioned", "cg", with_spectrum(np.geomspace(1, 100, n)), False),
        ("badly conditioned", "cg", with_spectrum(np.geomspace(1e-4, 1, n)), False),
        ("Laplacian, 40 x 40", "cg", grid, False),
        ("Gaussian kernel + 1e-3 I", "cg", kernel(n), False),
        ("complex", "cg", with_hermitian_spectrum(np.geomspace(1, 300, n)), False),
        ("singular", "cg", with_spectrum(singular), True),
        ("singular, Laplacian of a cycle", "minres", cycle(n), True),
        ("indefinite", "minres", with_spectrum(both), False),
        ("Laplacian - I, 40 x 40", "minres", (grid - sp.eye_array(1600)).tocsr(), False),
        ("not Hermitian", "lsmr", np.eye(n) * 30 + rng.standard_normal((n, n)), False),
        ("rectangular", "lsmr", tall, True),
    ]


class Counted(sla.LinearOperator):
    """A matrix that counts the columns that it and its adjoint are applied to."""

    def __init__(self, A):
        super().__init__(A.dtype, A.shape)
        self.A, self.adjoint_matrix, self.count = A, A.conj().T, 0

    def _matmat(self, X):
        self.count += X.shape[1]
        return self.A @ X

    def _matvec(self, x):
        self.count += 1
        return self.A @ x

    def _rmatvec(self, x):
        self.count += 1
        return self.adjoint_matrix @ x

    def _rmatmat(self, X):
        self.count += X.shape[1]
        return self.adjoint_matrix @ X


def scipy_matvecs(A, b, method):
    """The matvecs of the first run of SciPy's solver whose true residual is within RTOL."""
    solvers = {
        "cg": lambda M, tol: sla.cg(M, b, rtol=tol, maxiter=10_000)[0],
        "minres": lambda M, tol: sla.minres(M, b, rtol=tol, maxiter=10_000)[0],
        "lsmr": lambda M, tol: sla.lsmr(M, b, atol=0.0, btol=tol, conlim=0.0, maxiter=10_000)[0],
    }
    for power in range(20):
        M = Counted(A)
        x = solvers[method](M, RTOL * 0.5**power)
        if np.linalg.norm(b - A @ x) <= RTOL * np.linalg.norm(b):
            return M.count
    return None


def compare_with_scipy(report):
    rows = []
    for name, method, A, compatible in matrices():
        rng = np.random.default_rng(2)
        shape = A.shape[1 if compatible else 0], COLUMNS
        B = rng.standard_normal(shape)
        if np.iscomplexobj(A):
            B = B + 1j * rng.standard_normal(shape)
        B = A @ B if compatible else B
        theirs = scipy_matvecs(A, B[:, 0], method)
        all_theirs = [scipy_matvecs(A, b, method) for b in B.T]
        one = mf.solve(A, B[:, 0], rtol=RTOL)
        together = mf.solve(A, B, rtol=RTOL)
        true = np.linalg.norm(B - A @ together.values, axis=0) / np.linalg.norm(B, axis=0)
        assert true.max() <= RTOL * (1 + 1e-9)
        rows.append(
            [
                name,
                one.method,
                f"{method} {theirs}",
                theirs + 1,
                one.num_matvecs,
                sum(all_theirs) + COLUMNS,
                together.num_matvecs,
                f"{true.max():.1e}",
            ]
        )
        print("  ", *rows[-1], flush=True)
    report.table(
        f"Linear systems to a true residual of {RTOL:.0e}: matvecs of SciPy's solvers and of "
        f"mf.solve, which include that of the true residual; one and {COLUMNS} right-hand sides",
        [
            "matrix",
            "method of mf.solve",
            "SciPy, one",
            "with the residual",
            "mf.solve, one",
            f"SciPy, {COLUMNS} with residuals",
            f"mf.solve, {COLUMNS}",
            "largest true residual",
        ],
        rows,
    )


def gauss_newton():
    """The Gauss-Newton matrix of a small trained classifier, n = 939, and right-hand sides."""
    import torch

    from matfree_torch import ggn

    torch.manual_seed(0)
    X = torch.randn(400, 10, dtype=torch.float64)
    y = (X[:, :3].sum(1) > 0).long() + (X[:, 3] > 0.5).long()
    layers = [torch.nn.Linear(10, 24), torch.nn.Tanh(), torch.nn.Linear(24, 24), torch.nn.Tanh()]
    net = torch.nn.Sequential(*layers, torch.nn.Linear(24, 3)).double()
    loss = torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        loss(net(X), y).backward()
        optimizer.step()
    G = ggn(net, loss, (X, y)).to_dense().numpy()
    return (G + G.T) / 2


def compare_preconditioners(report):
    G = gauss_newton()
    n, top = len(G), np.linalg.eigvalsh(G)[-1]
    B = G @ np.random.default_rng(0).standard_normal((n, COLUMNS))
    rows = []
    for damping, limit in LIMITS.items():
        shift = damping * top
        M = G + shift * np.eye(n)
        theirs = sum(scipy_matvecs(M, b, "cg") for b in B.T)
        plain = mf.solve(G, B, shift=shift, lower=0.0, rtol=RTOL)
        runs = [
            mf.solve(G, B, shift=shift, lower=0.0, preconditioner="nystrom", rtol=RTOL, seed=seed)
            for seed in range(5)
        ]
        worst = max(runs, key=lambda run: run.num_matvecs)
        exact = np.linalg.solve(M, B)
        errors = np.linalg.norm(worst.values - exact, axis=0)
        assert np.all(errors <= worst.error_bound)
        assert worst.converged.all()
        mark = "" if worst.num_matvecs <= limit else " **above**"
        rows.append(
            [
                f"{damping:.0e}",
                theirs,
                plain.num_matvecs,
                f"{worst.num_matvecs}{mark}",
                worst.rank,
                limit,
                f"{worst.residuals.max():.1e}",
                f"{np.max(worst.error_bound / errors):.0f}",
            ]
        )
        print("  ", *rows[-1], flush=True)
    report.table(
        f"Gauss-Newton matrix of a trained network, n = {n}, {COLUMNS} systems to {RTOL:.0e}: "
        "matvecs in all, sketch and true residuals included",
        [
            "damping / norm",
            "SciPy's cg",
            "mf.solve",
            'preconditioner="nystrom", worst of 5 seeds',
            "rank",
            "limit",
            "largest true residual",
            "error bound / error",
        ],
        rows,
    )


def run(report):
    compare_with_scipy(report)
    compare_preconditioners(report)
