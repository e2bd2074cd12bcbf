"""Are red, green and blue what they are called? Told by how tiles differ from each other, and by what cities look like.

Three questions. Do some tiles have their bands in another order than the rest: would their colours fit the others
better after an exchange? Do all of them have red and blue exchanged: then shadows, which the blue sky lights, are
reddish, the strongest colours are blue instead of the red of roofs and soil, and plants have less red than blue? This
is a heuristic that needs all three signs for a clear answer. And is the first (or last) band near infrared, with red
and green beside it: then plants are what it shows brightest, and of the other two bands the nearer one, red, is the
darker one there. Where the band is red, its brightest things are roofs and soil, whose green is brighter than blue.
"""

import itertools
from dataclasses import dataclass, field

from fusiondet.doctor.findings import MAX_CASES, Case, Finding, counted
from fusiondet.doctor.samples import Sample
from fusiondet.io.colour_signs import colour_signs, logs_of, without_clouds

import numpy as np

_NAMES = ("red", "green", "blue")
_ORDERS = list(itertools.permutations(range(3)))
_PIXELS = 4000  # per tile
# Tiles need this many pixels with data.
_MIN_PIXELS = 400
# An exchange has to bring a tile this much nearer to the others: to this share of its distance, and by this many of
# their own spreads. Of red and blue alone, being nearer at all is enough where the signs below say so, too; heavily
# clouded tiles can be like that, and so it takes more of them.
_NEARER, _BY_SPREADS = 0.55, 1.0
_SIGNS_AGAINST = -0.6
_SWAPPED = _ORDERS.index((2, 1, 0))
# Near infrared: share of the pixels that one band outshines, and how much brighter the band two away is there than the
# one beside it, both as logarithms. 0.05 and more were measured in false colours, -0.03 and less in true ones.
_OUTSHINES, _INFRARED_SHARE, _INFRARED_TONE = 0.1, 0.03, 0.01


@dataclass
class ColourCheck:
    """The order of red, green and blue, over samples that are added one by one."""

    cases: list[Case] = field(default_factory=list)
    features: list[np.ndarray] = field(default_factory=list)
    signs: list[np.ndarray] = field(default_factory=list)
    infrared: list[np.ndarray] = field(default_factory=list)

    def add(self, sample: Sample) -> None:
        """Look at one tile."""
        names = [name.lower() for name in sample.dataset.bands.optical]
        if sample.image is None or not all(name in names for name in _NAMES):
            return
        rgb = sample.optical[[names.index(name) for name in _NAMES]]
        pixels = rgb[:, np.isfinite(rgb).all(axis=0) & (rgb > 0).any(axis=0)]
        pixels = without_clouds(pixels)
        if pixels.shape[1] < _MIN_PIXELS:
            return
        logs = logs_of(pixels[:, :: max(1, pixels.shape[1] // _PIXELS)])
        self.cases.append(Case(sample.split, sample.tile.file_name))
        self.features.append(np.array([_features(logs[list(order)]) for order in _ORDERS]))
        self.signs.append(colour_signs(logs))
        self.infrared.append(np.array([_infrared(logs), _infrared(logs[::-1])]))

    def findings(self) -> list[Finding]:
        """What the samples say."""
        return [self._odd_tiles(), self._all_tiles()]

    def _odd_tiles(self) -> Finding:
        name = "order of colours between tiles"
        if len(self.cases) < 4:
            return Finding(name, "n/a", "Needs red, green and blue in at least four tiles.")
        orders, clear = _fitting_orders(np.array(self.features), np.array(self.signs))
        most = np.bincount(orders).argmax()  # where all are alike in another order, the other check says so
        odd = np.flatnonzero(orders != most)
        clearly = int(clear[odd].sum())
        splits = np.array([case.split for case in self.cases])
        shares = {split: float(np.mean(orders[splits == split] != most)) for split in np.unique(splits)}
        numbers = {"tiles": len(orders), "odd_tiles": len(odd), "clearly_odd": clearly, "odd_share": shares}
        failed = clearly >= max(2, 0.03 * len(orders)) or len(odd) >= max(3, 0.25 * len(orders))
        if not failed and len(odd) < max(3, 0.1 * len(orders)):
            detail = f"Colours of {counted(len(orders), 'tile')} fit each other best as they are."
            return Finding(name, "ok", detail, "", numbers)
        cases = tuple(
            Case(self.cases[i].split, self.cases[i].image, f"fits better as {_words(orders[i])}")
            for i in odd[:MAX_CASES]
        )
        where = ", ".join(f"{split} {100 * share:.0f} %" for split, share in shares.items())
        detail = f"{len(odd)} of {len(orders)} tiles fit the others better with bands exchanged ({where})."
        remedy = (
            "Look at the pictures: name the bands by what they are (`rgb_bands`, `rgb_names`), for each source "
            "alone."
        )
        return Finding(name, "FAIL" if failed else "warn", detail, remedy, numbers, cases)

    def _all_tiles(self) -> Finding:
        name = "red and blue"
        if not self.cases:
            return Finding(name, "n/a", "There are no red, green and blue bands.")
        splits = np.array([case.split for case in self.cases])
        for split in dict.fromkeys(splits.tolist()):
            infrared = np.median(np.array(self.infrared)[splits == split], axis=0)
            for (share, tone), order in zip(infrared, (_NAMES, _NAMES[::-1])):
                if share > _INFRARED_SHARE and tone > _INFRARED_TONE:
                    return self._false_colours(name, split, order, {"share": share, "tone": tone})
        numbers, worst = {}, None
        for split in dict.fromkeys(splits.tolist()):
            signs = np.median(np.array(self.signs)[splits == split], axis=0)
            score = float(signs.sum())
            numbers[split] = dict(zip(("shadows", "strongest", "plants"), signs.tolist())) | {"score": score}
            if worst is None or score < worst[1]:
                worst = (split, score)
        split, score = worst
        detail = f"{split}: {score:+.1f} of 3 signs of cities and plants speak for the order of the bands (heuristic)."
        if score > -1.0:
            return Finding(name, "ok", detail, "", numbers)
        cases = tuple(case for case in self.cases if case.split == split)[:MAX_CASES]
        remedy = (
            "Look at the pictures: are plants green, brick roofs red and shadows bluish? If not, name the bands by "
            "what they are (`rgb_bands=(3, 2, 1)`)."
        )
        verdict = "FAIL" if score < -1.5 else "warn"
        return Finding(name, verdict, f"Red and blue look exchanged. {detail}", remedy, numbers, cases)

    def _false_colours(self, name: str, split: str, order: tuple[str, ...], numbers: dict) -> Finding:
        """Near infrared, red and green are called red, green and blue, in this `order`."""
        names = dict(zip(order, ("nir", "red", "green")))
        detail = (
            f"{split}: what is called {', '.join(_NAMES)} looks like near infrared, red and green, in the order "
            f"{', '.join(names[band] for band in _NAMES)}: plants are brightest in {order[0]} and darker in {order[1]} "
            f"than in {order[2]} (heuristic)."
        )
        called = tuple(names[band] for band in _NAMES)
        remedy = (
            f"Look at the pictures. Where plants look {order[0]}, name the bands by what they are: "
            f"`rgb_names={called}`."
        )
        cases = tuple(case for case in self.cases if case.split == split)[:MAX_CASES]
        return Finding(name, "FAIL", detail, remedy, {split: numbers}, cases)


def _words(order: int) -> str:
    return ", ".join(_NAMES[i] for i in _ORDERS[order])


def _features(logs: np.ndarray) -> np.ndarray:
    """(9,) numbers that describe the colours of a tile in the order given."""
    ratios = np.stack([logs[0] - logs[1], logs[2] - logs[1], logs[0] - logs[2]])
    return np.concatenate([np.percentile(ratios, (10, 50, 90), axis=1).ravel()])


def _infrared(logs: np.ndarray) -> np.ndarray:
    """(2,) for the first band: share of the pixels that it outshines; there, log of the third band over the second."""
    first, second, third = logs
    ahead = first - np.maximum(second, third)
    brightest = ahead > max(np.percentile(ahead, 90), 0.02)
    tone = np.median((third - second)[brightest]) if brightest.any() else -1.0
    return np.array([np.mean(ahead > _OUTSHINES), tone])


def _fitting_orders(
    features: np.ndarray, signs: np.ndarray, rounds: int = 6
) -> tuple[np.ndarray, np.ndarray]:
    """(N,) index into `_ORDERS` of each tile, 0 where its bands are in the order of most others; (N,) bool: clearly so.

    Args:
        features: (N, 6, F) of every tile in every order. signs: (N, 3) of `colour_signs`: where tiles start from.
    """
    tiles, score = np.arange(len(features)), signs.sum(axis=1)
    orders = np.where(score < _SIGNS_AGAINST, _SWAPPED, 0)
    for _ in range(rounds):
        now = features[tiles, orders]
        centre = np.median(now, axis=0)
        spread = 1.4826 * np.median(np.abs(now - centre), axis=0) + 0.02
        distance = np.sqrt((((features - centre) / spread) ** 2).mean(axis=2))  # (N, 6)
        best = distance.argmin(axis=1)
        nearest = distance[tiles, best]
        clear = (nearest < _NEARER * distance[:, 0]) & (distance[:, 0] - nearest > _BY_SPREADS)
        signed = (score < _SIGNS_AGAINST) & (distance[:, _SWAPPED] < distance[:, 0])
        changed = np.where(clear, best, np.where(signed, _SWAPPED, 0))
        if np.array_equal(changed, orders):
            break
        orders = changed
    return orders, clear
