"""Pictures of results: what was estimated, how far to trust it, and the exact answer beside.

Every function draws on the Axes it is given, or on new ones, and returns them. Nothing is
shown, saved or configured here: the backend, the style and the file are the caller's.
Curves have colours that everybody can tell apart (Okabe and Ito's) and that stand out on
white and on black; text takes the style's own colour.
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
