"""Quadrature biases bound the error of w^H f(A) w, known from all eigenvalues, or are unknown."""

import numpy as np
import pytest
import scipy.linalg
import scipy.special
from support.matrices import with_spectrum

import matfree as mf
from matfree.algorithms.spectra.gauss_quadrature import recurrence_coefficients
from matfree.quadratures.bias import QuadratureBias, QuadratureSettings, resolvent
from matfree.quadratures.ends import lower_end
from matfree.quadratures.jacobi import unfinished

N_PROBES, SIZE = 10, 300
_X = np.linspace(0, 1, SIZE)
KERNEL = np.maximum(np.linalg.eigvalsh(np.exp(-((_X[:, None] - _X) ** 2) / 0.02)), 0)
PROBLEMS = {
    "well conditioned": np.linspace(1e-2, 1, SIZE),
    "linear": np.linspace(1e-8, 1, SIZE),
    "log-uniform": np.geomspace(1e-6, 1, SIZE),
    "1-D Laplacian": 2 - 2 * np.cos(np.pi * np.arange(1, SIZE + 1) / (SIZE + 1)),
    "kernel": np.sort(KERNEL) + 1e-5,
    "one eigenvalue far below": np.r_[1e-8, np.linspace(0.01, 1, SIZE - 1)],
    "clusters": np.sort(np.repeat(np.geomspace(1e-8, 1, 5), 60) * (1 + 1e-4 * np.tile(_X[:60], 5))),
}
NAMED = {"log": np.log, "inverse": lambda x: 1 / x, "sqrt": np.sqrt, "exp": np.exp}
UNKNOWN = (None, None)


class Run:
    """Lanczos recurrences of Gaussian probes of a diagonal matrix, with the exact forms."""

    def __init__(self, eigenvalues, num_steps, seed, num_probes=N_PROBES, dtype=np.float64):
        rng = np.random.default_rng([seed, num_steps])
        self.W = rng.standard_normal((eigenvalues.size, num_probes)).astype(dtype)
        self.eigenvalues = eigenvalues.astype(dtype).astype(float)
        A = mf.aslinearoperator(np.diag(eigenvalues.astype(dtype)))
        self.T = mf.lanczos(A, self.W, num_steps, reorthogonalize="none", keep_basis=False)
        self.coefficients = [recurrence_coefficients(self.T, p) for p in range(num_probes)]
        self.squares = [norm**2 for norm in self.T.start_norms]
        self.num_steps, self.eps = num_steps, float(np.finfo(dtype).eps)

    def error(self, f):
        """The error of the mean of the Gauss rules, and the size of the mean."""
        rules = [self.T.quadrature(p) for p in range(len(self.squares))]
        gauss = [s * (w @ f(x)) for s, (x, w) in zip(self.squares, rules, strict=True)]
        forms = f(self.eigenvalues) @ self.W.astype(float) ** 2
        return abs(np.mean(gauss) - np.mean(forms)), abs(np.mean(forms))

    def bias(self, f, spectrum=UNKNOWN, **options):
        settings = QuadratureSettings(self.num_steps, 32 * self.eps, spectrum)
        return QuadratureBias(f, **options)(self.coefficients, self.squares, settings)


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("name", NAMED)
def test_the_bias_of_a_named_function_is_never_exceeded(problem, name):
    eigenvalues, f = PROBLEMS[problem], NAMED[name]
    ends = eigenvalues.min() * (1 - 1e-12), eigenvalues.max() * (1 + 1e-12)
    for num_steps in (10, 20, 40):
        for seed in range(3):
            run = Run(eigenvalues, num_steps, seed)
            error, size = run.error(f)
            given, seen = run.bias(name, ends), run.bias(name)
            assert error <= given + 1e-12 * size
            assert error <= seen + 1e-12 * size
            assert np.isfinite(given)
            assert given <= 1.05 * seen + 1e-10 * size
            assert name == "inverse" or np.isfinite(seen)


def test_known_bounds_of_the_spectrum_make_the_bias_as_small_as_the_error():
    ratios = []
    for problem in ("linear", "log-uniform", "1-D Laplacian", "one eigenvalue far below"):
        eigenvalues = PROBLEMS[problem]
        for name in ("log", "inverse", "sqrt"):
            run = Run(eigenvalues, 20, 0)
            ends = eigenvalues.min() * (1 - 1e-12), None
            ratios.append(run.bias(name, ends) / run.error(NAMED[name])[0])
    assert np.median(ratios) < 4
    assert max(ratios) < 30


@pytest.mark.parametrize("name", ["log", "inverse", "sqrt", "exp"])
def test_the_bias_of_an_easy_problem_is_no_part_of_the_interval(name):
    cube = 2 - 2 * np.cos(np.pi * np.arange(1, 9) / 9)
    problems = (
        PROBLEMS["well conditioned"],
        KERNEL + 1e-2,
        np.add.outer(np.add.outer(cube, cube), cube).ravel() + 0.1,
    )
    for eigenvalues in problems:
        for seed in range(3):
            options = {"num_probes": 10, "kind": "gaussian", "seed": seed}
            estimate = mf.trace_function(np.diag(eigenvalues), name, **options)
            assert estimate.half_width() <= 1.05 * (estimate.half_width() - estimate.bias)


FUNCTIONS = {
    "tanh": np.tanh,
    "step": lambda x: (x > 0.3).astype(float),
    "root of a distance": lambda x: np.abs(x - 0.3) ** 0.5,
    "kink": lambda x: np.maximum(x - 0.2, 0.0),
    "oscillation": lambda x: np.sin(10 * x),
    "Lorentzian": lambda x: 1 / (1 + 100 * (x - 0.4) ** 2),
    "complex": lambda x: np.exp(3j * x),
    "square root": lambda x: np.sqrt(x),
    "entropy": scipy.special.entr,
    "resolvent": lambda x: 1 / (x - 0.4 - 0.05j),
    "shifted inverse": lambda x: 2 / (x + 0.1),
    "inverse beyond": lambda x: 1 / (x - 4.5),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_bias_of_any_function_is_not_exceeded(name):
    f = FUNCTIONS[name]
    for eigenvalues in (PROBLEMS["1-D Laplacian"], PROBLEMS["log-uniform"], PROBLEMS["kernel"]):
        if name == "inverse beyond":
            eigenvalues = eigenvalues * (4 / eigenvalues.max())
        for num_steps in (10, 40):
            for seed in range(2):
                run = Run(eigenvalues, num_steps, seed)
                error, size = run.error(f)
                for spectrum in (UNKNOWN, (0.0, None)):
                    assert error <= run.bias(f, spectrum) + 1e-11 * size


@pytest.mark.parametrize("p", [0.1, 0.5, 1.0, 1.5, 3.0])
def test_powers_of_absolute_values_of_indefinite_operators_are_bracketed(p):
    spectra = (
        np.linspace(-1, 1, 301),
        np.r_[-np.geomspace(1e-3, 2, 100), np.geomspace(1e-4, 1, 200)],
        np.r_[np.zeros(200), np.linspace(-3, 5, 100)],
        np.linspace(1.0, 2.0, 300),
        -np.linspace(0.0, 2.0, 300),
    )

    def power(x):
        return np.abs(x) ** p

    for eigenvalues in spectra:
        for num_steps in (10, 40):
            run = Run(eigenvalues, num_steps, 0)
            error, size = run.error(power)
            bias = run.bias(power, absolute_power=p)
            assert error <= bias + 1e-12 * size
            assert np.isfinite(bias)


@pytest.mark.parametrize("name", NAMED)
def test_rounding_in_single_precision_is_part_of_the_bias(name):
    for eigenvalues in (PROBLEMS["well conditioned"], KERNEL + 1e-2, np.linspace(1, 2, SIZE)):
        for seed in range(3):
            run = Run(eigenvalues, 60, seed, dtype=np.float32)
            assert run.error(NAMED[name])[0] <= run.bias(name)


@pytest.mark.parametrize("num_probes", [1, 2, 10, 30])
def test_no_eigenvalue_lies_below_the_end_that_probes_imply(num_probes):
    wrong = 0
    for problem in ("linear", "1-D Laplacian", "one eigenvalue far below"):
        for seed in range(30):
            run = Run(PROBLEMS[problem], 20, seed, num_probes)
            T = unfinished(run.coefficients, run.squares, 20, 32 * run.eps)
            nodes = T.gauss()[0]
            wrong += lower_end(T, nodes.min(), nodes.max()) > PROBLEMS[problem].min()
    assert wrong <= 2  # of 90, with a probability of 1e-3 each


def test_a_radau_rule_has_its_node_and_is_exact_to_the_degree_2m():
    eigenvalues = np.linspace(0.1, 1.0, 40)
    run = Run(eigenvalues, 5, 0, 3)
    T = unfinished(run.coefficients, run.squares, 5, 32 * run.eps)
    nodes, weights = T.radau(0.05)
    assert np.allclose(nodes.min(axis=1), 0.05)
    for degree in range(11):
        got = T.squares * np.sum(weights * nodes**degree, axis=1)
        assert np.allclose(got, eigenvalues**degree @ run.W**2, rtol=1e-10)


def test_the_recurrence_of_the_square_is_that_of_the_squared_operator():
    eigenvalues = np.linspace(-1.0, 1.3, 50)
    run = Run(eigenvalues, 12, 0, 3)
    square = unfinished(run.coefficients, run.squares, 12, 32 * run.eps).squared()
    direct = mf.lanczos(np.diag(eigenvalues**2), run.W, 6, reorthogonalize="full")
    for p in range(3):
        expected = recurrence_coefficients(direct, p)
        assert np.allclose(square.alphas[p], expected[0])
        assert np.allclose(square.betas[p], expected[1])


def test_resolvents_are_recognized_by_their_values():
    nodes = np.linspace(0.1, 3, 20)
    z, factor = resolvent(lambda x: -3 / (x - 2 + 1j), nodes)
    assert z == pytest.approx(2 - 1j)
    assert factor == pytest.approx(3)
    z, _ = resolvent(lambda x: 1 / (x + 0.5), nodes)
    assert z == pytest.approx(-0.5)
    assert z.imag == 0
    for f in (np.exp, np.sqrt, np.ones_like, lambda x: 1 / (x**2 + 1), np.zeros_like):
        with np.errstate(all="ignore"):
            assert resolvent(f, nodes) is None


INDEFINITE = with_spectrum(np.r_[np.linspace(-2, -0.01, 100), np.linspace(0.02, 3, 100)])
LINE = 2 * np.eye(1000) - np.eye(1000, k=1) - np.eye(1000, k=-1)
LEAST = 2 - 2 * np.cos(np.pi / 1001)


@pytest.mark.parametrize("entry", ["trace_function", "SpectralDensity"])
def test_an_unknown_bias_is_an_open_interval_that_has_not_converged(entry):
    def estimate(spectrum=None):
        if entry == "trace_function":
            return mf.trace_function(LINE, "inverse", num_probes=4, spectrum=spectrum, seed=0)
        density = mf.spectral_density(LINE, num_probes=4, seed=0)
        return density.trace_function(lambda x: 1 / x, spectrum=spectrum)

    with pytest.warns(mf.ConvergenceWarning, match=r"is unknown.*spectrum=\(a, .*num_steps"):
        unknown = estimate()
    assert not unknown.converged
    assert unknown.interval() == (-np.inf, np.inf)
    assert "unknown" in str(unknown)
    known = estimate((LEAST * (1 - 1e-9), None))
    low, high = known.interval()
    assert known.converged == (known.bias <= abs(known.value))
    assert low < 1000 * 1002 / 6 < high < np.inf


def test_bounds_that_the_operator_exceeds_are_refused():
    for spectrum, side in (((0.5, None), "below 0.5"), ((None, 3.0), "above 3")):
        with pytest.raises(ValueError, match=rf"does not contain all eigenvalues.*{side}"):
            mf.logdet(LINE, num_probes=2, spectrum=spectrum, seed=0)
        with pytest.raises(ValueError, match=rf"does not contain all eigenvalues.*{side}"):
            mf.spectral_density(LINE, num_probes=2, seed=0).trace_function(
                np.exp, spectrum=spectrum
            )
    for spectrum in (1.0, (2.0, 1.0), ("a", None), (1, 2, 3), (np.nan, 1.0)):
        with pytest.raises(ValueError, match=r"spectrum"):
            mf.logdet(LINE, num_probes=2, spectrum=spectrum, seed=0)


def test_a_tolerance_increases_the_number_of_steps_as_far_as_it_needs():
    eigenvalues = np.geomspace(1e-4, 1, 2000)
    exact, options = np.log(eigenvalues).sum(), {"rtol": 0.005, "seed": 0, "max_matvecs": 1900}
    A = np.diag(eigenvalues)
    estimate = mf.logdet(A, spectrum=(1e-4, None), **options)
    assert estimate.converged
    assert estimate.num_matvecs > 40 * estimate.num_probes
    assert abs(estimate.value - exact) <= estimate.half_width() <= 0.005 * abs(estimate.value)
    with pytest.warns(mf.ConvergenceWarning, match="raise num_steps, because"):
        assert not mf.logdet(A, spectrum=(1e-4, None), num_steps=40, **options).converged
    narrow = mf.logdet(A, spectrum=(1e-4, None), block_size=3, **options)
    assert narrow.num_matvecs == estimate.num_matvecs
    assert narrow.value == pytest.approx(estimate.value, rel=1e-9)


def test_the_steps_of_an_easy_function_do_not_increase():
    estimate = mf.trace_function(np.diag(np.linspace(1, 2, 2000)), "log", rtol=0.05, seed=0)
    assert estimate.converged
    assert estimate.num_matvecs == 40 * estimate.num_probes


def test_schatten_norms_of_indefinite_and_rectangular_operators_have_a_bias():
    sigma = np.abs(np.linalg.eigvalsh(INDEFINITE))
    inside = 0
    for seed in range(20):
        low, high = mf.schatten_norm(INDEFINITE, 0.5, num_steps=20, seed=seed).interval()
        inside += low <= np.sum(sigma**0.5) ** 2 <= high
    assert inside >= 18
    tall = scipy.linalg.qr(np.random.default_rng(0).standard_normal((300, 200)), mode="economic")[0]
    tall = tall * np.linspace(0.1, 3, 200)
    without = mf.schatten_norm(tall, 1, num_steps=10, num_probes=10, seed=0)
    given = mf.schatten_norm(tall, 1, num_steps=10, num_probes=10, spectrum=(0.1, 3.0), seed=0)
    assert given.bias <= without.bias
    assert abs(given.value - np.linspace(0.1, 3, 200).sum()) <= given.half_width()


def test_the_bias_of_kernel_polynomials_bounds_the_smoothing():
    eigenvalues = np.linspace(0, 2, 400)
    density = mf.spectral_density(np.diag(eigenvalues), method="kpm", num_probes=4, seed=0)
    for f in (np.exp, lambda x: np.maximum(x - 0.7, 0.0)):
        estimate = density.trace_function(f)
        assert abs(estimate.value - f(eigenvalues).sum()) <= estimate.half_width()
        assert 0 < estimate.bias < 0.2 * estimate.value


def test_merged_and_saved_densities_keep_their_bias(tmp_path):
    A = np.diag(np.linspace(0.01, 1, 500))
    parts = [mf.spectral_density(A, num_probes=3, first_probe=i, seed=0) for i in (0, 3)]
    whole = mf.spectral_density(A, num_probes=6, seed=0).trace_function(np.log)
    merged = parts[0].merge(parts[1])
    loaded = mf.load(merged.save(tmp_path / "density"))
    for density in (merged, loaded):
        assert density.trace_function(np.log).bias == pytest.approx(whole.bias)
    deflated = mf.spectral_density(A, num_probes=4, eigenpairs=3, seed=0).trace_function(np.log)
    assert abs(deflated.value - np.log(np.diag(A)).sum()) <= deflated.half_width()
