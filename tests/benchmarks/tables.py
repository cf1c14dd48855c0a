"""Reference medians of independent implementations for the same problems."""


def _rows(methods, table):
    """{(problem, cost): {method: median}} from rows of medians, without None."""
    return {
        key: {m: x for m, x in zip(methods, values, strict=True) if x is not None}
        for key, values in table.items()
    }


TRACE = _rows(
    ("hutchinson", "hutch++", "xtrace", "xnystrace", "deflated"),
    {
        ("flat", 60): (1.2e-3, 1.9e-3, 1.3e-3, 1.1e-3, None),
        ("flat", 240): (6.3e-4, 1.3e-3, 8.3e-4, 6.0e-4, None),
        ("poly", 30): (1.3e-1, 4.1e-3, 3.0e-3, 1.7e-3, None),
        ("poly", 60): (8.4e-2, 1.2e-3, 7.6e-4, 5.0e-4, None),
        ("poly", 120): (6.0e-2, 3.2e-4, 2.0e-4, 1.3e-4, None),
        ("poly", 240): (4.1e-2, 9.6e-5, 3.8e-5, 3.2e-5, None),
        ("slowexp", 60): (3.2e-2, 9.9e-3, 5.4e-3, 1.1e-3, None),
        ("slowexp", 120): (2.1e-2, 7.7e-4, 1.6e-4, 3.7e-6, None),
        ("slowexp", 240): (1.6e-2, 1.1e-5, 1.3e-7, 2.6e-11, None),
        ("fastexp", 30): (8.2e-2, 5.3e-3, 1.9e-3, 7.9e-5, None),
        ("fastexp", 60): (4.6e-2, 1.3e-4, 4.5e-6, 5.3e-9, None),
        ("fastexp", 120): (3.5e-2, 6.7e-8, 7.8e-11, 3.7e-13, None),
        ("fastexp", 240): (2.7e-2, 5e-14, 1.4e-14, 1.7e-13, None),
        ("smallstep", 60): (2.2e-2, 2.7e-2, 2.3e-2, 4.5e-3, None),
        ("smallstep", 120): (1.1e-2, 9.5e-3, 5.7e-6, 2.6e-4, None),
        ("smallstep", 240): (8.6e-3, 1.8e-5, 2.1e-7, 5.0e-5, None),
        ("bigstep", 60): (2.3e-2, 2.7e-2, 2.4e-2, 1.3e-7, None),
        ("bigstep", 120): (1.1e-2, 9.7e-3, 6e-16, 2.8e-9, None),
        ("nn", 30): (8.0e-2, 3.3e-3, 2.1e-3, None, None),
        ("nn", 60): (5.5e-2, 1.2e-3, 9.8e-4, None, None),
        ("nn", 120): (4.9e-2, 8.4e-4, 8.5e-4, None, 6.0e-4),
        ("nn", 240): (2.9e-2, 4.2e-4, 4.3e-4, None, 3.5e-4),
        ("lap2d", 60): (1.5e-3, 2.6e-3, 1.9e-3, 1.5e-3, None),
        ("lap2d", 240): (7.7e-4, 1.6e-3, 9.3e-4, 7.8e-4, None),
        ("wishart", 60): (2.6e-3, 5.6e-3, 3.3e-3, 2.7e-3, None),
        ("wishart", 240): (1.3e-3, 2.3e-3, 1.4e-3, 1.2e-3, None),
    },
)
"""Relative error of the trace; the cost is the number of matvecs."""

DIAGONAL = _rows(
    ("hutchinson", "diag++", "xdiag", "xnysdiag", "deflated"),
    {
        ("poly", 60): (1.9, 3.0e-2, 2.1e-2, 9.8e-3, 4.6e-2),
        ("poly", 240): (0.96, 1.8e-3, 1.3e-3, 5.7e-4, 2.2e-2),
        ("fastexp", 30): (2.0, 1.9e-1, 7.5e-2, 1.2e-3, 3.2e-1),
        ("fastexp", 60): (1.5, 4.3e-3, 3.5e-4, 3.9e-8, 5.8e-2),
        ("smallstep", 60): (0.54, 0.73, 0.51, 8.2e-2, 0.69),
        ("smallstep", 120): (0.38, 0.30, 8.0e-3, 7.0e-3, 0.49),
        ("smallstep", 240): (0.27, 5.8e-4, 2.1e-3, 1.7e-3, 0.34),
        ("nn", 60): (2.2, 5.3e-2, 5.1e-2, None, 4.3e-2),
        ("nn", 240): (1.1, 1.9e-2, 1.5e-2, None, 2.1e-2),
        ("wishart", 60): (9.1e-2, 1.6e-1, 1.4e-1, 9.6e-2, 1.3e-1),
        ("wishart", 240): (4.6e-2, 7.6e-2, 7.5e-2, 5.0e-2, 6.3e-2),
        ("lap2d + ramp", 60): (4.2e-2, 7.6e-2, 7.0e-2, 5.4e-2, 6.1e-2),
        ("lap2d + ramp", 240): (2.1e-2, 4.3e-2, 4.7e-2, 3.8e-2, 3.1e-2),
    },
)
"""Relative 2-norm error of the diagonal; the cost is the number of matvecs."""

SUMS = _rows(
    ("log", "inverse", "exp(-x)", "sqrt"),
    {
        ("lap2d", (10, 10)): (3.9e-3, 1.4e-1, 1.1e-2, 1.7e-3),
        ("lap2d", (10, 40)): (4.0e-3, 3.4e-2, 1.1e-2, 1.7e-3),
        ("lap2d", (20, 40)): (3.9e-3, 3.1e-2, 1.2e-2, 1.4e-3),
    },
)
"""Relative error of tr f(A); the cost is (probes, Lanczos steps)."""

EIGEN = {
    ("nn", (1, 22)): 16,
    ("poly", (1, 22)): 22,
    ("wishart", (1, 22)): 137,
    ("lap2d", (1, 22)): 236,
    ("lap2d", (2, 48)): 336,
    ("nn", (4, 48)): 32,
    ("poly", (4, 48)): 36,
    ("wishart", (4, 48)): 220,
    ("lap2d", (4, 48)): 544,
    ("lap2d", (4, 80)): 414,
}
"""Matvecs by (problem, (block size, Lanczos vectors)). With blocks of one vector, the double
eigenvalues of the Laplacian are not found completely, neither here nor in the reference."""

COMPLETE = {
    ("lap2d", None): None,
    ("lap2d", (1, 40)): 689,
    ("hypercube", None): 109,
    ("nn", None): None,
}
"""Matvecs of the verified search by (problem, options or None for the defaults)."""
