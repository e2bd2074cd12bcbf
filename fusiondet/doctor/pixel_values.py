"""Checks of the rasters: are the files there and what the annotations say, and are their numbers plausible."""

import math
from collections import Counter, defaultdict
from dataclasses import dataclass, field

from fusiondet.doctor.findings import MAX_CASES, Case, Finding, counted, percent
from fusiondet.doctor.samples import Sample
from fusiondet.doctor.split_source import Split
from fusiondet.errors import InputError
from fusiondet.files import safe_join
from fusiondet.io.coco import RASTER_KEYS
from fusiondet.io.fill_values import border_fill
from fusiondet.io.rasters import open_raster
from fusiondet.io.tile_rasters import band_statistics

import numpy as np
from affine import Affine

# A transform in the annotations may differ from its file's by this share of a pixel: rounding.
_ROUNDING_PX = 0.1


def check_files(splits: list[Split]) -> list[Finding]:
    """Looks at every file's header: is it there, of the size, at the place and of the kind of the others."""
    missing, wrong_size, moved, broken, total = [], [], [], [], 0
    dtypes: dict[str, Counter] = defaultdict(Counter)
    headers: dict = {}
    for split in splits:
        for tile in split.dataset.tiles:
            for key in RASTER_KEYS:
                name = getattr(tile, key)
                if name is None:
                    continue
                total += 1
                path = safe_join(split.dataset.root, name)
                if path not in headers:
                    headers[path] = _header(path)
                case = Case(split.name, name)
                header = headers[path]
                if header is None:
                    missing.append(case)
                elif isinstance(header, str):
                    broken.append(Case(split.name, name, header))
                else:
                    dtypes[key][header.dtype] += 1
                    if key not in ("file_name", "sar_file_name"):
                        continue
                    window = tile.window if key == "file_name" else tile.sar_window
                    if not _fits(header, tile, window):
                        note = f"{header.width} x {header.height} px, annotated {tile.width} x {tile.height}"
                        wrong_size.append(Case(split.name, name, note))
                    elif _is_moved(header, tile, window):
                        moved.append(case)
    numbers = {
        "files": total,
        "missing": len(missing),
        "unreadable": len(broken),
        "other_size": len(wrong_size),
        "other_transform": len(moved),
        "dtypes": {key: dict(counts) for key, counts in dtypes.items()},
    }
    return [
        _files_finding(missing, broken, wrong_size, total, numbers),
        _place_finding(moved, numbers),
        _dtypes(dtypes),
    ]


@dataclass(frozen=True)
class _Header:
    width: int
    height: int
    dtype: str
    transform: Affine


def _header(path) -> _Header | str | None:
    """What the file says of itself; text when it cannot be opened; None when there is none."""
    if not path.is_file():
        return None
    try:
        with open_raster(path) as raster:
            return _Header(
                raster.width, raster.height, "/".join(sorted(set(raster.dtypes))), raster.transform
            )
    except InputError as error:
        return str(error)


def _fits(header: _Header, tile, window) -> bool:
    if window is None:
        return (header.width, header.height) == (tile.width, tile.height)
    x0, y0, width, height = window
    return x0 + width <= header.width and y0 + height <= header.height


def _is_moved(header: _Header, tile, window) -> bool:
    """Whether the annotations place the tile elsewhere than its file does; neither is known to be right."""
    if tile.transform is None or header.transform.is_identity:
        return False
    here = header.transform * Affine.translation(*(window or (0, 0))[:2])
    there = Affine(*tile.transform[:6])
    if there.is_identity:
        return False
    corners = [(0, 0), (tile.width, 0), (0, tile.height)]
    off = [np.subtract(~here * (there * corner), corner) for corner in corners]
    return bool(np.abs(off).max() > _ROUNDING_PX)


def _files_finding(missing, broken, wrong_size, total: int, numbers: dict) -> Finding:
    if not (missing or broken or wrong_size):
        return Finding("raster files", "ok", f"All {total} are there, of the annotated size.", "", numbers)
    detail = (
        f"of {total}: {len(missing)} missing, {len(broken)} that cannot be opened, {len(wrong_size)} of another size "
        "than annotated."
    )
    remedy = (
        "Copy the files to their place below the folder of annotations/; where the size differs, outlines lie "
        "elsewhere: make the data again from the rasters as they are."
    )
    cases = tuple((missing + broken + wrong_size)[:MAX_CASES])
    return Finding("raster files", "FAIL", detail, remedy, numbers, cases)


def _place_finding(moved: list[Case], numbers: dict) -> Finding:
    name = "georeference of the files"
    if not moved:
        return Finding(name, "ok", "Files and annotations place the tiles alike, where both do.", "", {})
    detail = f"{counted(len(moved), 'file')} have another transform than their tile in the annotations."
    remedy = (
        "One of the two is wrong: maps made of the predictions, and the check for shared ground, go by the "
        "tile's."
    )
    found = {"other_transform": numbers["other_transform"]}
    return Finding(name, "FAIL", detail, remedy, found, tuple(moved[:MAX_CASES]))


def _dtypes(dtypes: dict[str, Counter]) -> Finding:
    numbers = {key: dict(counts) for key, counts in dtypes.items()}
    mixed = [key for key in ("file_name", "sar_file_name") if len(dtypes.get(key, ())) > 1]
    words = {"file_name": "optical (or first)", "sar_file_name": "SAR"}
    detail = "; ".join(
        f"{words[key]}: {', '.join(f'{d} ({n})' for d, n in dtypes[key].most_common())}"
        for key in words
        if key in dtypes
    )
    if mixed:
        remedy = "8 and 16 bit have other scales: bring all files of a modality to one type and one scale."
        return Finding("data types", "FAIL", f"Mixed. {detail}", remedy, numbers)
    return Finding("data types", "ok", detail or "none", "", numbers)


@dataclass
class _Band:
    """What the samples of one split showed of one band."""

    low: float = math.inf
    high: float = -math.inf
    pixels: int = 0
    invalid: int = 0
    at_top: int = 0
    flat_tiles: int = 0
    tiles: int = 0


@dataclass
class PixelCheck:
    """Ranges, no data and black borders, over samples that are added one by one."""

    bands: dict[tuple[str, str], _Band] = field(default_factory=lambda: defaultdict(_Band))
    errors: list[Case] = field(default_factory=list)
    samples: int = 0
    buildings: int = 0
    hidden: Counter = field(default_factory=Counter)
    hidden_cases: list[tuple[float, Case]] = field(default_factory=list)
    fills: list[tuple[float, float, Case]] = field(default_factory=list)
    grey: int = 0
    no_sar: Counter = field(default_factory=Counter)

    def add(self, sample: Sample) -> None:
        """Look at one tile."""
        self.samples += 1
        if sample.image is None:
            self.errors.append(Case(sample.split, sample.tile.file_name, sample.error))
            return
        valid = np.isfinite(sample.image)
        for name, channel, known in zip(sample.dataset.bands.names, sample.image, valid, strict=True):
            self._add_band(self.bands[sample.split, name], channel[known], channel.size)
        optical = sample.optical
        if len(optical) >= 3:
            self.grey += bool(np.array_equal(optical[0], optical[1], equal_nan=True))
        if len(optical):
            fill = border_fill(optical[..., None, None])
            if fill is not None:
                case = Case(
                    sample.split, sample.tile.file_name, f"{percent(fill.share)} exactly {fill.value:g}"
                )
                self.fills.append((fill.share, fill.value, case))
        self._add_labels(sample, valid)

    def _add_band(self, band: _Band, values: np.ndarray, size: int) -> None:
        band.tiles += 1
        band.pixels += size
        band.invalid += size - values.size
        if not values.size:
            return
        low, high = float(values.min()), float(values.max())
        band.flat_tiles += low == high
        top = max(band.high, high)
        band.at_top = (band.at_top if top == band.high else 0) + int((values == top).sum())
        band.low, band.high = min(band.low, low), top

    def _add_labels(self, sample: Sample, valid: np.ndarray) -> None:
        self.buildings += len(sample.tile.buildings)
        pixels = max(int(sample.footprint.sum()), 1)
        n = len(sample.dataset.bands.optical)
        for kind, part in (("optical", valid[:n]), ("SAR", valid[n:])):
            if not len(part) or not part.any():
                continue  # a modality that the tile lacks as a whole is no hole in it
            share = float((sample.footprint & ~part.any(axis=0)).sum()) / pixels
            self.hidden[kind] += share * len(sample.tile.buildings)
            if share > 0.01:
                note = f"no {kind} under {percent(share)} of the footprints"
                self.hidden_cases.append((share, Case(sample.split, sample.tile.file_name, note)))

    def findings(self, splits: list[Split], max_tiles: int) -> list[Finding]:
        """What the samples say."""
        return [self._readable(), self._ranges(splits, max_tiles), self._nodata(), self._borders()]

    def _readable(self) -> Finding:
        name, numbers = "pixels", {"sampled": self.samples, "unreadable": len(self.errors)}
        if not self.errors:
            return Finding(name, "ok", f"{counted(self.samples, 'sampled tile')} can be read.", "", numbers)
        detail = f"{len(self.errors)} of {self.samples} sampled tiles cannot be read: {self.errors[0].note}"
        remedy = "A training stops at such a tile: see what the message says."
        return Finding(name, "FAIL", detail, remedy, numbers, tuple(self.errors[:MAX_CASES]))

    def _ranges(self, splits: list[Split], max_tiles: int) -> Finding:
        name = "ranges of the bands"
        if not self.bands:
            return Finding(name, "n/a", "No tile can be read.")
        numbers: dict = {}
        flat, partly, clipped = [], [], []
        for (split, band), b in self.bands.items():
            share = b.invalid / max(b.pixels, 1)
            top = b.at_top / max(b.pixels - b.invalid, 1)
            known = b.pixels > b.invalid
            numbers.setdefault(split, {})[band] = {
                "min": b.low if known else None,
                "max": b.high if known else None,
                "nodata_share": share,
                "at_max_share": top,
                "constant_tiles": b.flat_tiles,
            }
            if not known or b.low == b.high:
                flat.append(f"{band} of {split}")
            elif b.flat_tiles:
                partly.append(f"{band} in {b.flat_tiles} of {b.tiles} tiles of {split}")
            elif top > 0.05:
                clipped.append(f"{band} of {split} ({percent(top)})")
        for split in splits:
            try:
                mean, std = band_statistics(split.dataset, max_tiles=max_tiles)
            except InputError:
                continue  # said above: unreadable, or a band without a valid pixel
            for band, m, s in zip(split.dataset.bands.names, mean, std, strict=True):
                numbers.get(split.name, {}).get(band, {}).update({"mean": m, "std": s})
        words = []
        for band in dict.fromkeys(band for _, band in self.bands):
            lows, highs = zip(
                *((b.low, b.high) for (_, n), b in self.bands.items() if n == band), strict=True
            )
            words.append(f"{band} {min(lows):.4g} to {max(highs):.4g}")
        detail = ", ".join(words) + "."
        if flat:
            remedy = "A band without contrast or without data tells nothing: is it the right file, band and no data?"
            return Finding(name, "FAIL", f"Constant: {', '.join(flat[:4])}. {detail}", remedy, numbers)
        if partly or clipped:
            what = [f"constant: {', '.join(partly[:3])}"] * bool(partly) + [
                f"clipped at the highest value: {', '.join(clipped[:3])}"
            ] * bool(clipped)
            remedy = "Look at these tiles; clipped bands were stretched too far, and what is bright in them is lost."
            return Finding(name, "warn", f"{'; '.join(what)}. {detail}", remedy, numbers)
        if self.grey:
            detail = f"Red and green are the same in {counted(self.grey, 'tile')}. {detail}"
            remedy = "Panchromatic pictures as three bands: use one, named pan."
            return Finding(name, "warn", detail, remedy, numbers)
        return Finding(name, "ok", detail, "", numbers)

    def _nodata(self) -> Finding:
        name = "no data under labels"
        if not self.buildings:
            return Finding(name, "n/a", "No sampled tile has buildings.")
        shares = {kind: n / self.buildings for kind, n in self.hidden.items()}
        numbers = {f"{kind}_share": share for kind, share in shares.items()}
        words = ", ".join(f"{kind} {percent(share)}" for kind, share in shares.items())
        worst = max(shares.values(), default=0)
        detail = f"Of the footprints in sampled tiles lie on no data: {words or 'nothing'}."
        if worst <= 0.01:
            return Finding(name, "ok", detail, "", numbers)
        cases = tuple(case for _, case in sorted(self.hidden_cases, key=lambda c: -c[0])[:MAX_CASES])
        remedy = "Buildings that no picture shows teach false answers: clip labels to the valid pixels, or drop them."
        return Finding(name, "FAIL" if worst > 0.2 else "warn", detail, remedy, numbers, cases)

    def _borders(self) -> Finding:
        name, numbers = "undeclared borders", {"tiles_with_fill": len(self.fills)}
        if not self.fills:
            return Finding(
                name, "ok", "No sampled tile has a large area of one value at its border.", "", numbers
            )
        worst = sorted(self.fills, key=lambda f: -f[0])
        share, value, _ = worst[0]
        detail = (
            f"{counted(len(self.fills), 'sampled tile')} have areas of one exact value at their border, up to "
            f"{percent(share)} of {value:g}."
        )
        remedy = f"Where it is a border and no shadow: make the data again with `nodata={value:g}`."
        return Finding(name, "warn", detail, remedy, numbers, tuple(case for *_, case in worst[:MAX_CASES]))
