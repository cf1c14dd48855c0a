"""Numbers are printed with the digits that their uncertainty supports."""

import math

import numpy as np
import pytest

import matfree as mf
from matfree.digits import number, supported, supported_interval


@pytest.mark.parametrize(
    ("value", "half_width", "text"),
    [
        (164.70492, 2.53, "164.7"),
        (164.70492, 25.3, "165"),
        (164.70492, 253.0, "160"),
        (-0.0123456, 0.00067, "-0.01235"),
        (1.2345e12, 3e9, "1.2345e+12"),
        (1.2345e-300, 2e-303, "1.2345e-300"),
        (2 / 3, 0.0, "0.66666667"),
        (2 / 3, math.inf, "0.667"),
        (3.0, 1e-30, "3.000000000000000"),
        (0.0, 1.2, "0.0"),
        (math.nan, 1.0, "nan"),
        (1.25 - 0.5j, 0.1, "1.25-0.50i"),
    ],
)
def test_the_last_digit_is_the_second_one_of_the_half_width(value, half_width, text):
    assert supported(value, half_width) == text


@pytest.mark.parametrize("seed", range(3))
def test_the_printed_number_lies_within_a_twentieth_of_the_half_width(seed):
    rng = np.random.default_rng(seed)
    for size, share in zip(rng.uniform(-300, 300, 200), rng.uniform(-12, 2, 200), strict=True):
        value = float(rng.choice([-1, 1]) * 10.0**size)
        half = abs(value) * 10.0**share
        assert abs(float(supported(value, half)) - value) <= half / 20 * (1 + 1e-9)


def test_numbers_of_usual_size_have_no_power_of_ten():
    assert [number(x, 2) for x in (163.7, 0.00012, 1.6e6)] == ["160", "0.00012", "1600000"]
    assert [number(x, 2) for x in (1.6e7, 1.2e-7)] == ["1.6e+07", "1.2e-07"]
    assert supported_interval(-math.inf, math.inf) == "[-inf, inf]"
    assert supported_interval(161.934, 167.291) == "[161.9, 167.3]"


def test_an_estimate_has_the_formats_of_numbers():
    A = np.diag([1.0, 2.0, 3.0]) + 1
    estimate = mf.trace(A, num_probes=40, seed=0)
    assert f"{estimate:.3f}" == f"{estimate.value:.3f}"
    assert f"{estimate}" == str(estimate)
    value, half = f"{estimate:±}".split(" ± ")
    assert float(half) == pytest.approx(estimate.half_width(), rel=0.05)
    assert abs(float(value) - estimate.value) < 0.05 * estimate.half_width()
    assert f"{mf.trace(A + 0j, num_probes=40, seed=0, kind='z4'):.1f}".startswith("9.")
    with pytest.raises(TypeError, match=r"array.*.3f"):
        f"{mf.diagonal(A, num_probes=4, seed=0):.3f}"
    with pytest.raises(ValueError, match="format"):
        f"{estimate:nonsense}"


@pytest.mark.parametrize("kind", ["rademacher", "gaussian", "sphere", "z4"])
def test_the_first_probes_of_a_run_give_what_a_shorter_run_gives(kind):
    dtype = complex if kind == "z4" else float
    A = np.diag(np.arange(20.0)).astype(dtype) + 1
    whole = mf.trace(A, num_probes=30, seed=3, kind=kind, block_size=5)
    short = mf.trace(A, num_probes=10, seed=3, kind=kind, block_size=5)
    part = whole.first(10)
    assert part.value == pytest.approx(short.value, rel=1e-12)
    assert part.half_width() == pytest.approx(short.half_width(), rel=1e-9)
    for count in (0, 31):
        with pytest.raises(ValueError, match=r"\[1, 30\]"):
            whole.first(count)
    with pytest.raises(ValueError, match="xtrace"):
        mf.trace(A, method="xtrace", num_probes=4, seed=0).first(2)
