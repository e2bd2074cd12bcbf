"""The numbers of an ablation: scores per row and column, differences with intervals, claims. Pure functions.

Differences are paired: the same tiles, drawn with replacement, for both sides, and the same seed. With several seeds
the scores are averaged over them within each draw of tiles, so that an interval says what other tiles of this kind
would give; `std` says what other seeds would.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fusiondet.evaluation.resampling import Difference, TileScores, difference, resampled, summarize

import numpy as np

DRAWS = 1000


@dataclass(frozen=True)
class Cell:
    """One network under one condition: scores by seed, and the same over drawn tiles.

    Attributes:
        seeds: seed -> {metric: score or None}.
        drawn: seed -> {metric: (draws,)}, NaN where not defined.
    """

    seeds: Mapping[int, dict]
    drawn: Mapping[int, dict]


def drawn_scores(tiles: Sequence[TileScores]) -> dict:
    """Scores of `tiles`, and over tiles drawn with replacement, as plain data.

    Which tiles are drawn follows from their number alone, so that two networks that were scored apart are paired.

    Returns:
        "score": {metric: number or None}, "drawn": {metric: DRAWS numbers, six digits, None where not defined}.
    """
    (drawn,) = resampled([tiles], draws=DRAWS)
    plain = {
        key: [float(f"{v:.6g}") if np.isfinite(v) else None for v in values] for key, values in drawn.items()
    }
    return {"score": summarize(tiles), "drawn": plain}


def make_cells(found: Mapping[tuple[str, str, int], dict]) -> dict[tuple[str, str], Cell]:
    """(row, column) -> Cell, from (row, column, seed) -> `drawn_scores`."""
    cells: dict[tuple[str, str], Cell] = {}
    for (row, column, seed), content in found.items():
        cell = cells.setdefault((row, column), Cell({}, {}))
        cell.seeds[seed] = content["score"]
        cell.drawn[seed] = {key: np.array(values, dtype=float) for key, values in content["drawn"].items()}
    return cells


def compare(start: Cell, to: Cell, metric: str) -> Difference:
    """`to` minus `start` in `metric`, over the seeds that both have; all None where it is not defined for one."""
    seeds = [seed for seed in to.seeds if seed in start.seeds]
    if not seeds:
        return Difference(None, None, None, None, None)
    values = [mean_of([cell.seeds[s][metric] for s in seeds]) for cell in (start, to)]
    drawn = [np.mean([cell.drawn[s][metric] for s in seeds], axis=0) for cell in (start, to)]
    return difference(*values, *drawn)


def table(cells: Mapping[tuple[str, str], Cell], metrics: Sequence[str], compare_to: str) -> list[dict]:
    """One dict per row, column and metric: seeds, mean, std (of a sample; None for one seed), and, but for the row that
    is compared with, difference, low, high.
    """
    lines = []
    for (row, column), cell in cells.items():
        reference = cells.get((compare_to, column))
        for metric in metrics:
            values = [scores[metric] for scores in cell.seeds.values()]
            line = {"row": row, "column": column, "metric": metric, "seeds": len(values)}
            line |= {
                "mean": mean_of(values),
                "std": _std_of(values),
                "difference": None,
                "low": None,
                "high": None,
            }
            if reference is not None and row != compare_to:
                found = compare(reference, cell, metric)
                line |= {"difference": found.difference, "low": found.low, "high": found.high}
            lines.append(line)
    return lines


def judge(claims: Sequence, cells: Mapping[tuple[str, str], Cell]) -> list[dict]:
    """One dict per claim with both values, their difference, its interval, and `verdict`.

    "shown": the whole interval is within the claim's bounds; "contradicted": all of it is outside; "open": neither;
    "missing": one side is not there yet, or not defined. None for a claim without bounds.
    """
    lines = []
    for claim in claims:
        start, to = cells.get(claim.start), cells.get(claim.to)
        found = compare(start, to, claim.metric) if start and to else Difference(*[None] * 5)
        lines.append(
            {
                "claim": claim.text,
                "metric": claim.metric,
                "from": list(claim.start),
                "to": list(claim.to),
                **{"above": claim.above, "below": claim.below},
                **{"from_score": found.a, "to_score": found.b, "difference": found.difference},
                **{"low": found.low, "high": found.high, "verdict": _verdict(claim, found)},
            }
        )
    return lines


def _verdict(claim, found: Difference) -> str | None:
    if found.low is None:
        return "missing"
    above = -np.inf if claim.above is None else claim.above
    below = np.inf if claim.below is None else claim.below
    if claim.above is None and claim.below is None:
        return None
    if above < found.low and found.high < below:
        return "shown"
    return "contradicted" if found.high < above or below < found.low else "open"


def mean_of(values: Sequence[float | None]) -> float | None:
    """Mean; None when there is none or one of them is not defined."""
    return None if not values or None in values else float(np.mean(values))


def _std_of(values: Sequence[float | None]) -> float | None:
    return None if len(values) < 2 or None in values else float(np.std(values, ddof=1))
