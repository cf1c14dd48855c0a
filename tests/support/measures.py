"""Distances between discrete distributions on the line."""

import numpy as np

from matfree.results import interpretations


def _gaps(x, wx, y, wy):
    points = np.concatenate((x, y))
    steps = np.concatenate((np.asarray(wx) / np.sum(wx), -np.asarray(wy) / np.sum(wy)))
    order = np.argsort(points, kind="stable")
    return points[order], np.cumsum(steps[order])


def wasserstein(x, wx, y, wy):
    """W1: the area between the distribution functions."""
    points, gap = _gaps(x, wx, y, wy)
    return float(np.sum(np.abs(gap[:-1]) * np.diff(points)))


def kolmogorov(x, wx, y, wy):
    """The largest difference of the distribution functions."""
    points, gap = _gaps(x, wx, y, wy)
    last_of_each = np.append(np.diff(points) > 0, True)
    return float(np.abs(gap[last_of_each]).max())


def distance_to_spectrum(density, spectrum):
    """W1 between a spectral density's atoms and the exact spectrum."""
    nodes, weights = np.concatenate(density.nodes), np.concatenate(density.weights)
    return wasserstein(nodes, weights, spectrum, np.ones(len(spectrum)))


def distance_to_cdf(cdf, breaks, spectrum):
    """W1 between the exact spectrum and a distribution function, linear between ``breaks``."""
    points = np.unique(np.concatenate((breaks, spectrum)))
    exact = np.searchsorted(np.sort(spectrum), points, side="right") / len(spectrum)
    begin = cdf(points)[:-1] - exact[:-1]
    end = cdf(np.nextafter(points, -np.inf))[1:] - exact[:-1]
    both = np.abs(begin) + np.abs(end)
    crossing = begin * end < 0  # two triangles where the sign changes
    area = np.where(crossing, (begin**2 + end**2) / (2 * np.where(crossing, both, 1.0)), both / 2)
    return float(np.sum(area * np.diff(points)))


def relative_distance(density, spectrum, *, reading="atoms"):
    """W1 between a spectral density and the exact spectrum, relative to the range of the latter."""
    breaks, measures = np.concatenate(density.nodes), density.pieces(reading)
    # ``density.cdf`` includes nodes that exceed a point by their rounding error.
    area = distance_to_cdf(lambda x: interpretations.cdf(measures, x), breaks, spectrum)
    return area / (np.max(spectrum) - np.min(spectrum))
