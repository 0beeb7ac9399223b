"""Pictures, as PNG files.

They are made through matplotlib's object API on the Agg canvas: no display, no pyplot, no global state changed.
matplotlib is imported on first use. Every file is written to a temporary name beside it and renamed.
"""

from kdcli.results.pictures.confusion import plot_confusion
from kdcli.results.pictures.curves import plot_learning_curves
from kdcli.results.pictures.features import plot_landscape, plot_tsne
from kdcli.results.pictures.ranks import plot_ranks
from kdcli.results.pictures.spectra import plot_decomposition, plot_evolution, plot_spectrum

__all__ = [
    "plot_confusion",
    "plot_decomposition",
    "plot_evolution",
    "plot_landscape",
    "plot_learning_curves",
    "plot_ranks",
    "plot_spectrum",
    "plot_tsne",
]
