"""Numbers as text, with as many digits as their uncertainty supports."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

_PLAIN = range(-5, 7)  # decimal exponents for which no power of ten is written
_MOST = 16  # significant digits of double precision


def number(x: Any, digits: int = 6) -> str:
    """A number with at most this many significant digits, complex ones as real and imaginary part.

    Examples
    --------
    >>> number(163.7, 2), number(1.5e-7, 3), number(2 - 0.25j)
    ('160', '1.5e-07', '2-0.25i')
    """
    if isinstance(x, complex):
        return f"{number(x.real, digits)}{'' if x.imag < 0 else '+'}{number(x.imag, digits)}i"
    text = f"{x:.{digits}g}"
    if "e" not in text or _exponent(float(text)) not in _PLAIN:
        return text
    return np.format_float_positional(float(text), trim="-")


def supported(value: Any, half_width: float) -> str:
    """A number whose last digit is the second one of the half-width of its interval.

    Parameters
    ----------
    value : real or complex
    half_width : float
        0 for an exact number, which is printed with eight digits; if it is infinite or NaN, three
        digits are printed.

    Examples
    --------
    >>> supported(164.70492, 2.53), supported(164.70492, 253.0), supported(1.5e-7, 2e-9)
    ('164.7', '160', '1.500e-07')
    """
    if isinstance(value, complex):
        sign = "" if value.imag < 0 else "+"
        return f"{supported(value.real, half_width)}{sign}{supported(value.imag, half_width)}i"
    if half_width == 0 or not math.isfinite(value):
        return number(value, 8)
    if not math.isfinite(half_width):
        return number(value, 3)
    first, last = _exponent(max(abs(value), half_width)), _exponent(half_width) - 1
    last = max(last, first + 1 - _MOST)
    if first not in _PLAIN:
        return f"{value:.{first - last}e}"
    return f"{round(value, -last):.{max(-last, 0)}f}"


def supported_interval(low: float, high: float) -> str:
    """An interval as "[low, high]", with two digits of its half-width."""
    half = (high - low) / 2
    return f"[{supported(low, half)}, {supported(high, half)}]"


def _exponent(x: float) -> int:
    """The decimal exponent of a number; 0 for 0."""
    return math.floor(math.log10(abs(x))) if x else 0
