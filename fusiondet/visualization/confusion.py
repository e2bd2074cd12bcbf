"""Which class was taken for which: a matrix of shares of the true class, with the numbers in it."""

from collections.abc import Sequence

from fusiondet.visualization.canvas import FAINT, INK, axes_in, new_figure

import numpy as np
from matplotlib.figure import Figure

_CELL_IN, _LEFT_IN, _TOP_IN, _BELOW_IN, _RIGHT_IN = 0.42, 1.9, 0.6, 1.75, 0.75


def confusion_figure(counts: np.ndarray, names: Sequence[str], title: str = "") -> Figure:
    """A row per true class, a column per predicted one, both in order; each row adds up to 100 %.

    Args:
        counts: (K, K), true by predicted. names: K.

    A class that is never true has an empty row; at the right stands how many each row is made of.
    """
    counts = np.asarray(counts)
    k = len(names)
    if counts.shape != (k, k):
        raise ValueError(f"{k} names for counts of shape {counts.shape}")
    side = max(k, 3) * _CELL_IN
    figure = new_figure(_LEFT_IN + side + _RIGHT_IN, _BELOW_IN + side + _TOP_IN)
    ax = axes_in(figure, _LEFT_IN, _BELOW_IN, side, side)
    true = counts.sum(axis=1, keepdims=True)
    share = np.divide(100.0 * counts, true, out=np.full(counts.shape, np.nan), where=true > 0)
    ax.imshow(np.nan_to_num(share), cmap="Blues", vmin=0, vmax=100, aspect="equal")
    for i, j in zip(*np.nonzero(counts)):
        # Less than half a per cent is there, and not 0.
        text = f"{share[i, j]:.0f}" if share[i, j] >= 0.5 else "·"
        ax.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if share[i, j] > 55 else INK)
    for i, n in enumerate(true[:, 0]):
        ax.text(k - 0.35, i, f"{n}", ha="left", va="center", fontsize=7.5, color=INK if n else FAINT)
    ax.text(k - 0.35, -0.75, "n", ha="left", va="center", fontsize=8, color=FAINT)
    ax.set_xticks(range(k), names, rotation=90, fontsize=8)
    ax.set_yticks(range(k), names, fontsize=8)
    ax.set_xlabel("predicted", fontsize=9, color=INK)
    ax.set_ylabel("true; cells in % of the row", fontsize=9, color=INK)
    if title:
        ax.set_title(title, fontsize=10, color=INK, loc="left")
    ax.set_xticks(np.arange(k + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(k + 1) - 0.5, minor=True)
    ax.grid(which="minor", color="white", linewidth=0.8)
    ax.tick_params(which="both", length=0, labelcolor=INK)
    for spine in ax.spines.values():
        spine.set_visible(False)
    return figure
