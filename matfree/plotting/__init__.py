"""Plots of results: the estimate, its error bounds and, if it is known, the exact answer.

Every function draws on the Axes that are passed to it, or on new ones, and returns them. No
function shows or saves a figure or changes a setting of matplotlib: backend, style and files
are left to the caller. Curves have colours of Okabe and Ito that people with colour vision
deficiency can distinguish and that contrast with white and with black. Text has the colour of
the style in use.

The modules may import ``matfree.protocol`` and ``matfree.errors`` only: they read the attributes of
the results that they are given.
"""

from matfree.plotting.runs import plot_diagonal, plot_power, plot_search, plot_trace
from matfree.plotting.spectra import Atom, isolated, plot_cdf, plot_density

__all__ = [
    "Atom",
    "isolated",
    "plot_cdf",
    "plot_density",
    "plot_diagonal",
    "plot_power",
    "plot_search",
    "plot_trace",
]
