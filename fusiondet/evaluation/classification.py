"""Scores of classes, of patches or of pixels: a matrix of counts, and what follows from it.

Rules: a class that occurs neither in the truth nor in the prediction has no score (None), and no part in a mean; one
that is predicted and never true has F1 and IoU 0, and no producer's accuracy.
"""

from collections.abc import Iterable, Sequence

from fusiondet.errors import InputError

import numpy as np


class ConfusionMatrix:
    """How often which class was taken for which.

    Attributes:
        counts: (K, K) int64, true class by predicted class.
    """

    def __init__(self, n_classes: int, counts: np.ndarray | None = None):
        """Of K = `n_classes`, at least 1; `counts` (K, K) to begin with, default none."""
        if n_classes < 1:
            raise ValueError(f"{n_classes} classes, expected 1 or more")
        self.counts = np.zeros((n_classes, n_classes), np.int64)
        if counts is not None:
            self.merge(counts)

    @property
    def n_classes(self) -> int:
        """K."""
        return len(self.counts)

    @property
    def total(self) -> int:
        """What was counted."""
        return int(self.counts.sum())

    def add(self, truth: np.ndarray, predicted: np.ndarray) -> "ConfusionMatrix":
        """Count pairs of two integer arrays of one shape; where `truth` is below 0, unknown, nothing is counted.

        Raises:
            InputError: a true class of K or more, or a predicted one outside 0 ... K - 1 where the truth is known.
        """
        truth, predicted = np.asarray(truth), np.asarray(predicted)
        if truth.shape != predicted.shape:
            raise ValueError(f"truth of shape {truth.shape}, prediction of shape {predicted.shape}")
        for array in (truth, predicted):
            if array.size and array.dtype.kind not in "iub":
                raise ValueError(f"classes are integers, found {array.dtype}")
        known = truth >= 0
        truth, predicted = truth[known].astype(np.int64), predicted[known].astype(np.int64)
        k = self.n_classes
        for what, found in (("true", truth), ("predicted", predicted)):
            outside = found[(found < 0) | (found >= k)]
            if outside.size:
                raise InputError(
                    f"{what} class {outside[0]}, expected 0 to {k - 1}: there are {k} classes. Do the labels belong to "
                    "this list of classes?"
                )
        self.counts += np.bincount(truth * k + predicted, minlength=k * k).reshape(k, k)
        return self

    def merge(self, other: "ConfusionMatrix | np.ndarray") -> "ConfusionMatrix":
        """Add the counts of another matrix of the same classes."""
        counts = np.asarray(other.counts if isinstance(other, ConfusionMatrix) else other)
        if counts.shape != self.counts.shape or counts.dtype.kind not in "iu" or (counts < 0).any():
            raise ValueError(
                f"expected {self.counts.shape} counts of 0 or more, found {counts.shape} {counts.dtype}"
            )
        self.counts += counts.astype(np.int64)
        return self


def class_metrics(
    matrix: ConfusionMatrix, names: Sequence[str], prefix: str = "classes"
) -> dict[str, float | None]:
    """What `matrix` says of classes of these K `names`, keys as `<prefix>/oa`; shares in [0, 1], None if undefined.

    Returns:
        oa: overall accuracy. aa: average (producer's) accuracy, the mean recall of the classes that are true
        somewhere. kappa: Cohen's, None where chance alone is always right. mean_f1, miou: means over the classes that
        have one. f1/<name>, iou/<name> per class. n: what was counted.
    """
    if len(names) != matrix.n_classes or len({*names}) != len(names):
        raise ValueError(f"{len(names)} names ({len({*names})} different) for {matrix.n_classes} classes")
    counts = matrix.counts.astype(float)
    right, true, said, n = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0), counts.sum()
    f1, iou = _ratio(2 * right, true + said), _ratio(right, true + said - right)
    scores = {
        "oa": right.sum() / n if n else None,
        "aa": _mean(_ratio(right, true)),
        "kappa": _kappa(right.sum(), (true * said).sum(), n),
        "mean_f1": _mean(f1),
        "miou": _mean(iou),
        **{f"f1/{name}": value for name, value in zip(names, f1, strict=True)},
        **{f"iou/{name}": value for name, value in zip(names, iou, strict=True)},
    }
    found = {f"{prefix}/{key}": None if value is None else float(value) for key, value in scores.items()}
    return {**found, f"{prefix}/n": int(n)}


def _kappa(right: float, by_chance: float, n: float) -> float | None:
    """(p - q) / (1 - q), p the share that is right and q = `by_chance` / n^2 that which chance would have right."""
    if not n or by_chance >= n * n:
        return None
    return (right / n - by_chance / n**2) / (1 - by_chance / n**2)


def _ratio(part: np.ndarray, whole: np.ndarray) -> list[float | None]:
    return [p / w if w else None for p, w in zip(part, whole, strict=True)]


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
