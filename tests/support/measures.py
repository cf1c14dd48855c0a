"""Distances between discrete distributions on the line."""

import numpy as np


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
    """The largest gap between the distribution functions."""
    points, gap = _gaps(x, wx, y, wy)
    last_of_each = np.append(np.diff(points) > 0, True)
    return float(np.abs(gap[last_of_each]).max())


def distance_to_spectrum(density, spectrum):
    """W1 between a spectral density's atoms and the exact spectrum."""
    nodes, weights = np.concatenate(density.nodes), np.concatenate(density.weights)
    return wasserstein(nodes, weights, spectrum, np.ones(len(spectrum)))
