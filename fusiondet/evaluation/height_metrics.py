"""How good heights are, given pairs of truth and prediction. Metres above ground; error = prediction - truth."""

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import ndtr, ndtri

BIN_EDGES_M = (0.0, 3.0, 6.0, 12.0, 24.0, 50.0, np.inf)
RATIO = 1.25
# p16 and p84 of a normal distribution lie this many standard deviations from its median.
Z84 = float(ndtri(0.84))


def height_metrics(
    truth_m: np.ndarray,
    median_m: np.ndarray,
    p16_m: np.ndarray | None = None,
    p84_m: np.ndarray | None = None,
    known_truth_total: int | None = None,
    prefix: str = "height",
) -> dict[str, float | int | None]:
    """All height numbers of matched buildings, under the names listed in `fusiondet.evaluation`.

    Args:
        truth_m: (N,) true heights; NaN where unknown.
        median_m: (N,) predicted heights; NaN where none was predicted.
        p16_m, p84_m: (N,) predicted interval; NaN where none. None when nothing has an interval.
        known_truth_total: buildings with known height that there were to find; default: those in `truth_m`.
        prefix: first part of the keys, "height" or "height_gt_boxes".

    Returns:
        Flat dict; None for every number that is not defined. Pairs with an unknown side count for nothing.
    """
    truth_m, median_m = _floats(truth_m), _floats(median_m)
    unknown = np.full(len(truth_m), np.nan)
    p16_m, p84_m = (unknown if p is None else _floats(p) for p in (p16_m, p84_m))
    total = int(np.isfinite(truth_m).sum()) if known_truth_total is None else int(known_truth_total)
    both = np.isfinite(truth_m) & np.isfinite(median_m)
    truth_m, median_m, p16_m, p84_m = (values[both] for values in (truth_m, median_m, p16_m, p84_m))
    numbers = {"n": len(truth_m), "coverage": len(truth_m) / total if total else None}
    numbers |= (
        height_errors(truth_m, median_m)
        | _per_bin(truth_m, median_m)
        | _intervals(truth_m, median_m, p16_m, p84_m)
    )
    return {f"{prefix}/{name}": value for name, value in numbers.items()}


def height_ratio(a_m: np.ndarray, b_m: np.ndarray) -> np.ndarray:
    """max(a / b, b / a), broadcast; infinite where either is unknown (NaN) or not positive: such a height is wrong."""
    a_m, b_m = np.broadcast_arrays(_floats(a_m), _floats(b_m))
    ratio = np.full(a_m.shape, np.inf)
    good = (a_m > 0) & (b_m > 0)
    ratio[good] = np.maximum(a_m[good] / b_m[good], b_m[good] / a_m[good])
    return ratio


def crps_log_normal(truth_m: np.ndarray, median_m: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """(N,) continuous ranked probability score, metres, of log-normal predictions; |error| where sigma is 0.

    exp(N(mu, sigma^2)) with mu = ln(median), truth y, omega = (ln y - mu) / sigma, Phi the normal CDF:
    y (2 Phi(omega) - 1) - 2 exp(mu + sigma^2 / 2) (Phi(omega - sigma) + Phi(sigma / sqrt 2) - 1).
    Source: Baran & Lerch 2015, Log-normal distribution based EMOS models, doi:10.1002/qj.2521.
    Lower is better; for a sigma of 0 it is the absolute error, so MAE and CRPS compare directly.
    """
    truth_m, median_m = _floats(truth_m), _floats(median_m)
    # Below 1e-6 the formula subtracts nearly equal numbers; above 10 the mean overflows any meaning.
    sigma = np.clip(sigma, 1e-6, 10.0)
    omega = (np.log(truth_m) - np.log(median_m)) / sigma
    spread = ndtr(omega - sigma) + ndtr(sigma / np.sqrt(2.0)) - 1.0
    return truth_m * (2.0 * ndtr(omega) - 1.0) - 2.0 * median_m * np.exp(sigma**2 / 2.0) * spread


def height_errors(truth_m: np.ndarray, median_m: np.ndarray) -> dict[str, float | None]:
    """mae_m ... slope of `fusiondet.evaluation` over pairs (N,) that are both known; None for all when N is 0."""
    names = ("mae_m", "rmse_m", "bias_m", "median_error_m", "nmad_m")
    names += ("delta1", "delta2", "delta3", "skill", "slope")
    if not len(truth_m):
        return dict.fromkeys(names)
    error = median_m - truth_m
    ratio = height_ratio(truth_m, median_m)
    mae = np.abs(error).mean()
    constant_mae = np.abs(truth_m - np.median(truth_m)).mean()
    values = (
        mae,
        np.sqrt((error**2).mean()),
        error.mean(),
        np.median(error),
        1.4826 * np.median(np.abs(error - np.median(error))),
        *((ratio < RATIO**k).mean() for k in (1, 2, 3)),
        1.0 - mae / constant_mae if constant_mae > 0 else None,
        np.cov(truth_m, median_m, bias=True)[0, 1] / truth_m.var() if constant_mae > 0 else None,
    )
    return {name: None if v is None else float(v) for name, v in zip(names, values, strict=True)}


def _per_bin(truth_m, median_m) -> dict:
    numbers = {}
    for low, high in zip(BIN_EDGES_M, BIN_EDGES_M[1:], strict=False):
        # Measured differences may lie slightly below 0; they belong to the lowest bin.
        inside = ((truth_m >= low) | (low == 0)) & (truth_m < high)
        error = (median_m - truth_m)[inside]
        name = f"bin_{low:g}_{high:g}_m"
        numbers[f"{name}/n"] = len(error)
        numbers[f"{name}/mae_m"] = float(np.abs(error).mean()) if len(error) else None
        numbers[f"{name}/bias_m"] = float(error.mean()) if len(error) else None
    return numbers


def _intervals(truth_m, median_m, p16_m, p84_m) -> dict:
    """Interval coverage, CRPS and error by width, over the pairs that have an interval."""
    usable = (truth_m > 0) & (p16_m > 0) & (p16_m <= median_m) & (median_m <= p84_m) & np.isfinite(p84_m)
    truth_m, median_m, p16_m, p84_m = (values[usable] for values in (truth_m, median_m, p16_m, p84_m))
    if not len(truth_m):
        names = ("interval_coverage", "crps_m", "crps_constant_width_m", "crps_constant_ratio_m")
        return dict.fromkeys(names) | _by_width(truth_m, median_m, p84_m - p16_m)
    sigma = np.log(p84_m / p16_m) / (2.0 * Z84)
    return {
        "interval_coverage": float(((truth_m >= p16_m) & (truth_m <= p84_m)).mean()),
        "crps_m": float(crps_log_normal(truth_m, median_m, sigma).mean()),
        "crps_constant_width_m": _best_crps(truth_m, median_m, _sigma_of_width, truth_m.max()),
        "crps_constant_ratio_m": _best_crps(truth_m, median_m, lambda width, _: width, 2.0),
        **_by_width(truth_m, median_m, p84_m - p16_m),
    }


def _sigma_of_width(width_m: float, median_m: np.ndarray) -> np.ndarray:
    """Sigma of the log-normals with these medians whose p84 - p16 is `width_m`: 2 median sinh(z sigma) = width."""
    return np.arcsinh(width_m / (2.0 * median_m)) / Z84


def _best_crps(truth_m, median_m, sigma_of, largest: float) -> float:
    """Smallest mean CRPS that one width for all can reach, chosen with the truth in hand: a hard baseline."""

    def mean_crps(width):
        return crps_log_normal(truth_m, median_m, sigma_of(width, median_m)).mean()

    # The score need not have a single minimum: look along a coarse grid, then refine around its best point.
    grid = np.geomspace(largest * 1e-3, largest, 30)
    best = int(np.argmin([mean_crps(width) for width in grid]))
    bounds = (grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)])
    found = minimize_scalar(mean_crps, bounds=bounds, method="bounded")
    return float(min(found.fun, mean_crps(grid[best]), mean_crps(0.0)))


def _by_width(truth_m, median_m, width_m) -> dict:
    numbers = {}
    quarters = np.array_split(np.argsort(width_m, kind="stable"), 4)
    for k, members in enumerate(quarters, start=1):
        error = np.abs(median_m - truth_m)[members]
        numbers[f"width_q{k}/n"] = len(members)
        numbers[f"width_q{k}/mae_m"] = float(error.mean()) if len(members) else None
        numbers[f"width_q{k}/width_m"] = float(width_m[members].mean()) if len(members) else None
    return numbers


def _floats(values) -> np.ndarray:
    """Float array; None becomes NaN."""
    return np.array(values, dtype=float)
