"""Scores of one number per thing, such as the built-up share of a patch."""

import numpy as np


def regression_metrics(
    truth: np.ndarray, predicted: np.ndarray, prefix: str = "regression"
) -> dict[str, float | None]:
    """How far `predicted` is from `truth`, both (N,); what is NaN in the truth is unknown and left out.

    Returns:
        <prefix>/mae, rmse, bias (mean of prediction minus truth), in the unit of the numbers; r2 = 1 - sum of squared
        errors / sum of squared distances from the mean truth, below 0 for what is worse than that mean, None where
        all truth is equal; n. Without any known truth all but n are None.
    """
    truth, predicted = np.asarray(truth, float), np.asarray(predicted, float)
    if truth.shape != predicted.shape or truth.ndim != 1:
        raise ValueError(f"expected two lists of one length, found {truth.shape} and {predicted.shape}")
    known = ~np.isnan(truth)
    truth, error = truth[known], predicted[known] - truth[known]
    found = dict.fromkeys(f"{prefix}/{key}" for key in ("mae", "rmse", "bias", "r2"))
    if len(truth):
        spread = float(((truth - truth.mean()) ** 2).sum())
        found[f"{prefix}/mae"] = float(np.abs(error).mean())
        found[f"{prefix}/rmse"] = float(np.sqrt((error**2).mean()))
        found[f"{prefix}/bias"] = float(error.mean())
        # Of equal numbers the mean may differ from them in the last digit.
        if np.ptp(truth) > 0:
            found[f"{prefix}/r2"] = 1.0 - float((error**2).sum()) / spread
    return {**found, f"{prefix}/n": int(known.sum())}
