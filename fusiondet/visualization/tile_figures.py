"""Figures of tiles: image panels, outlines, arrows to the sun and along the radar's look, one legend in metres."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fusiondet.buildings import Building, Tile
from fusiondet.errors import InputError
from fusiondet.io.bands import BandSpec
from fusiondet.io.pixel_classes import ClassList
from fusiondet.visualization import marks
from fusiondet.visualization.building_overlays import (
    GROUND_M,
    draw_buildings,
    draw_matches,
    error_colours,
    height_colours,
    map_colours,
)
from fusiondet.visualization.canvas import FAINT, INK, axes_in, new_figure
from fusiondet.visualization.panels import (
    class_panel,
    faded,
    map_panel,
    optical_panel,
    polarisation_indexes,
    rgb_indexes,
    sar_panel,
)

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

MATCH_IOU = 0.5
_PANELS_PER_ROW = 6
_MARGIN_IN, _GAP_IN, _TITLE_IN, _LEGEND_IN = 0.2, 0.06, 0.48, 0.62
_MIN_WIDTH_IN = 6.4
# Of classes, in the legend: names that are longer are cut.
_KEYS_PER_ROW, _KEY_ROW_IN = 5, 0.19


@dataclass
class TileView:
    """One tile, ready to be drawn.

    Attributes:
        tile: its names, sensor geometry and true buildings.
        image: (C, H, W) float, optical bands then SAR bands in dB (or stretched), NaN = no data.
        bands: what the channels of `image` are.
        predictions: predicted buildings in the tile's pixels; None when the figure is about truth only.
        matches: index into the tile's buildings of every prediction, -1 for a false one.
        truth_map_m, height_map_m: (H, W) true and predicted height per pixel, metres above ground, NaN = unknown. With
            any map the figure shows maps, without outlines of predicted buildings.
        footprint_map: (H, W) predicted probability of a building, NaN = unknown.
        class_map: (H, W) true class of each pixel, a number in `classes`, below 0 where it is not labelled.
    """

    tile: Tile
    image: np.ndarray
    bands: BandSpec
    predictions: list[Building] | None = None
    matches: Sequence[int] = field(default_factory=list)
    truth_map_m: np.ndarray | None = None
    height_map_m: np.ndarray | None = None
    footprint_map: np.ndarray | None = None
    class_map: np.ndarray | None = None
    classes: ClassList | None = None

    @property
    def optical(self) -> np.ndarray:
        """(C_optical, H, W)."""
        return self.image[: len(self.bands.optical)]

    @property
    def sar(self) -> np.ndarray:
        """(C_sar, H, W)."""
        return self.image[len(self.bands.optical) :]

    @property
    def error_map_m(self) -> np.ndarray | None:
        """(H, W) prediction minus truth; None where either is missing."""
        both = self.truth_map_m is not None and self.height_map_m is not None
        return self.height_map_m - self.truth_map_m if both else None


def tile_figure(view: TileView, panel_in: float = 4.2) -> Figure:
    """One tile: optical, SAR and true buildings; with predictions also these, and which matched; or maps beside truth.

    A modality that the tile's dataset does not have gets no panel; one that only this tile lacks is hatched.
    """
    return overview_figure([view], panel_in=panel_in)


def overview_figure(views: Sequence[TileView], panel_in: float = 2.45) -> Figure:
    """`views` in a grid, each as in `tile_figure`, under one height scale.

    Args:
        panel_in: width of a panel, inches; 120 dots each.

    Raises:
        InputError: no view at all.
    """
    if not views:
        raise InputError("no tile to draw: the annotations list no image.")
    heights_m = _heights_shown(views)
    colours = (map_colours if any(_maps(v) for v in views) else height_colours)(heights_m)
    panels = _panels(views, colours, bool(np.isfinite(heights_m).any()))
    aspect = float(np.clip(max(v.tile.height / v.tile.width for v in views), 0.4, 2.0))
    classes = _class_keys(views)
    figure, axes = _grid(len(views), len(panels), panel_in, aspect, math.ceil(len(classes) / _KEYS_PER_ROW))
    for view, row in zip(views, axes, strict=True):
        _write_title(row, view)
        for ax, (heading, paint) in zip(row, panels, strict=True):
            _prepare(ax, view.tile, heading)
            paint(ax, view)
    _write_legend(figure, axes, views, heights_m, colours)
    left_in = axes[0][0].get_position().x0 * figure.get_size_inches()[0]
    marks.draw_class_keys(figure, classes, left_in, _LEGEND_IN, _KEYS_PER_ROW, _KEY_ROW_IN)
    return figure


def _maps(view: TileView) -> list[np.ndarray]:
    maps = (view.truth_map_m, view.height_map_m, view.footprint_map)
    return [m for m in maps if m is not None]


def _heights_shown(views: Sequence[TileView]) -> np.ndarray:
    """(N,) metres that the scale is made for: of buildings in maps where there are some, else of outlines; NaN unknown.

    The ground is most of a map, and would draw the scale down to it.
    """
    maps = [m for v in views for m in (v.truth_map_m, v.height_map_m) if m is not None]
    if maps:
        return np.concatenate([m[np.nan_to_num(m) >= GROUND_M] for m in maps])
    buildings = [b for v in views for b in (*v.tile.buildings, *(v.predictions or ()))]
    return np.array([b.height_m for b in buildings], dtype=float)


def _panels(
    views: Sequence[TileView], colours: ScalarMappable, any_height: bool
) -> list[tuple[str, Callable]]:
    """(heading, paint(ax, view)) of every column that these views need."""
    bands = views[0].bands
    unit = ", height in m" if any_height else ""

    def truth(ax, view):
        _show(ax, view, _background(view))
        draw_buildings(ax, view.tile.buildings, colours)

    def predicted(ax, view):
        _show(ax, view, _background(view))
        draw_buildings(ax, view.predictions or [], colours)

    def matched(ax, view):
        _show(ax, view, _background(view))
        draw_matches(ax, view.tile.buildings, view.predictions or [], view.matches)

    panels = [(_optical_heading(bands), _paint_optical)] if bands.optical else []
    panels += [(_sar_heading(bands), _paint_sar)] if bands.sar else []
    if any(v.class_map is not None for v in views):
        panels.append(("classes", _paint_classes))
        if not any(_maps(v) or v.tile.buildings or v.predictions for v in views):
            return panels
    if any(_maps(v) for v in views):
        return [*panels, *_map_panels(views, colours, (f"buildings{unit}", truth))]
    if all(v.predictions is None for v in views):
        return [*panels, (f"buildings{unit}", truth)]
    match = (f"match at IoU ≥ {MATCH_IOU:g}", matched)
    return [*panels, (f"truth{unit}", truth), (f"prediction{unit}", predicted), match]


def _map_panels(
    views: Sequence[TileView], colours: ScalarMappable, outlines: tuple
) -> list[tuple[str, Callable]]:
    """True heights (`outlines` where they are not known per pixel), predicted ones, errors, predicted footprints."""
    columns = {
        "true height": ("truth_map_m", colours),
        "predicted height": ("height_map_m", colours),
        "error, predicted − true height": ("error_map_m", _errors_of(views)),
        "footprint probability, black 0 to white 1": (
            "footprint_map",
            ScalarMappable(Normalize(0, 1), "gray"),
        ),
    }
    panels = [
        (heading, _map_painter(name, scale))
        for heading, (name, scale) in columns.items()
        if any(getattr(v, name) is not None for v in views)
    ]
    return panels if any(v.truth_map_m is not None for v in views) else [outlines, *panels]


def _map_painter(name: str, colours: ScalarMappable) -> Callable:
    def paint(ax, view):
        values = getattr(view, name)
        unknown = np.full((view.tile.height, view.tile.width), np.nan)
        _show(ax, view, map_panel(unknown if values is None else values, colours))

    return paint


def _errors_of(views: Sequence[TileView]) -> ScalarMappable:
    """The scale of the errors of `views`, on buildings and where one was predicted."""
    errors = [e[np.abs(e) >= GROUND_M] for e in (v.error_map_m for v in views) if e is not None]
    return error_colours(np.concatenate(errors) if errors else np.zeros(0))


def _paint_optical(ax: Axes, view: TileView) -> None:
    _show(ax, view, optical_panel(view.optical, view.bands.optical))
    marks.draw_scale_bar(ax, view.tile)
    sensor = view.tile.sensor
    marks.draw_direction(ax, view.tile, sensor.sun_azimuth_deg, sensor.sun_elevation_deg, "sun", "#ffd23f")
    if sensor.view_off_nadir_deg:  # straight above there is no direction
        lean = (sensor.view_azimuth_deg, sensor.view_off_nadir_deg)
        marks.draw_direction(ax, view.tile, *lean, "view", "#ffffff", corner="lower right")


def _paint_sar(ax: Axes, view: TileView) -> None:
    _show(ax, view, sar_panel(view.sar, view.bands.sar))
    if not view.bands.optical:
        marks.draw_scale_bar(ax, view.tile)
    sensor = view.tile.sensor
    look = sensor.sar_look_azimuth_deg
    marks.draw_direction(ax, view.tile, look, sensor.sar_incidence_deg, "look", "#7fdcff")


def _paint_classes(ax: Axes, view: TileView) -> None:
    numbers = view.class_map
    if numbers is None:
        numbers = np.full((view.tile.height, view.tile.width), -1)
    _show(ax, view, class_panel(numbers, view.classes.colours if view.classes else ()))


def _class_keys(views: Sequence[TileView]) -> dict[str, tuple[int, ...]]:
    """Name -> colour of the classes that occur, in the order of their list, which all views share."""
    labelled = [v for v in views if v.class_map is not None]
    seen = sorted({int(i) for v in labelled for i in np.unique(v.class_map) if i >= 0})
    return {labelled[0].classes.names[i]: labelled[0].classes.colours[i] for i in seen}


def _background(view: TileView) -> np.ndarray:
    """Quiet picture under the outlines: of the optical bands where there are some, else of the SAR bands."""
    if len(view.optical) and (np.isfinite(view.optical).any() or not len(view.sar)):
        missing = ~np.isfinite(view.optical[rgb_indexes(len(view.optical), view.bands.optical)]).all(axis=0)
        return faded(optical_panel(view.optical, view.bands.optical), keep=missing)
    missing = ~np.isfinite(view.sar[polarisation_indexes(len(view.sar), view.bands.sar)]).all(axis=0)
    return faded(sar_panel(view.sar, view.bands.sar), keep=missing)


def _show(ax: Axes, view: TileView, picture: np.ndarray) -> None:
    ax.imshow(picture, extent=(0, view.tile.width, view.tile.height, 0), interpolation="antialiased")


def _optical_heading(bands: BandSpec) -> str:
    chosen = [bands.optical[i] for i in rgb_indexes(len(bands.optical), bands.optical)]
    return "optical" if chosen == ["red", "green", "blue"] else f"optical: {', '.join(chosen)}"


def _sar_heading(bands: BandSpec) -> str:
    unit = "stretched" if bands.sar_scale == "stretched_uint8" else "dB"
    chosen = [bands.sar[i] for i in polarisation_indexes(len(bands.sar), bands.sar)]
    if len(chosen) == 1:
        return f"SAR {chosen[0]} ({unit})"
    if len(chosen) == 2:
        chosen.append(f"{chosen[0]}−{chosen[1]}")
    return f"SAR: {', '.join(chosen)} as R, G, B"


def _grid(
    n_tiles: int, n_panels: int, panel_in: float, aspect: float, key_rows: int
) -> tuple[Figure, list[list[Axes]]]:
    """Figure with `n_panels` axes per tile, tiles beside each other as long as six panels fit in a row.

    Below them is room for the legend, and `key_rows` rows of classes in it.
    """
    per_row = min(n_tiles, max(1, _PANELS_PER_ROW // n_panels))
    rows = math.ceil(n_tiles / per_row)
    group_in = n_panels * panel_in + (n_panels - 1) * _GAP_IN
    used_in = per_row * group_in + (per_row - 1) * 2 * _MARGIN_IN
    row_in = _TITLE_IN + panel_in * aspect + 0.1
    figure = new_figure(
        max(used_in + 2 * _MARGIN_IN, _MIN_WIDTH_IN), rows * row_in + _LEGEND_IN + key_rows * _KEY_ROW_IN
    )
    width_in, height_in = figure.get_size_inches()
    axes = []
    for k in range(n_tiles):
        row, column = divmod(k, per_row)
        x_in = (width_in - used_in) / 2 + column * (group_in + 2 * _MARGIN_IN)
        y_in = height_in - row * row_in - _TITLE_IN - panel_in * aspect
        starts = [x_in + p * (panel_in + _GAP_IN) for p in range(n_panels)]
        axes.append([axes_in(figure, start, y_in, panel_in, panel_in * aspect) for start in starts])
    return figure, axes


def _prepare(ax: Axes, tile: Tile, heading: str) -> None:
    ax.set_xlim(0, tile.width)
    ax.set_ylim(tile.height, 0)
    ax.set_aspect("equal", anchor="N")
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set(color="#999999", linewidth=0.5)
    ax.set_title(heading, fontsize=7, color=FAINT, pad=2.5)


def _write_title(row: Sequence[Axes], view: TileView) -> None:
    """File name and facts above the tile's panels; the name is shortened to the room there is."""
    tile, first, last = view.tile, row[0].get_position(), row[-1].get_position()
    width_in, height_in = row[0].figure.get_size_inches()
    gsd = f"{tile.gsd_m:.3g} m/px" if math.isfinite(tile.gsd_m) else "GSD unknown"
    facts = f"{tile.width} × {tile.height} px · {gsd} · {_count(len(tile.buildings), 'building')}"
    if view.predictions is not None:
        facts += f" · {len(view.predictions)} predicted"
    # Bold letters are about 0.66, others 0.52 of their size wide.
    room = ((last.x1 - first.x0) * width_in * 72 - 0.52 * 8 * len(facts)) / (0.66 * 8.5)
    name = _shortened(Path(tile.file_name).name, max(int(room) - 2, 10))
    y = first.y1 + 0.2 / height_in
    figure = row[0].figure
    figure.text(first.x0, y, name, fontsize=8.5, color=INK, weight="bold", va="bottom")
    figure.text(last.x1, y, facts, fontsize=8, color=FAINT, va="bottom", ha="right")


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _shortened(name: str, room: int) -> str:
    """`name` with its middle left out when longer than `room` characters: numbers tend to stand at the end."""
    if len(name) <= room:
        return name
    head = (room - 1) // 3
    return f"{name[:head]}…{name[len(name) - (room - 1 - head) :]}"


def _write_legend(figure: Figure, axes: list[list[Axes]], views, heights_m, colours: ScalarMappable) -> None:
    """Colourbars, keys and the meaning of the arrows, as far as they occur."""
    width_in = figure.get_size_inches()[0]
    left_in = axes[0][0].get_position().x0 * width_in
    errors = [v.error_map_m for v in views if v.error_map_m is not None]
    bar_in = min(3.2, (0.24 if errors else 0.38) * width_in)
    if np.isfinite(heights_m).any():
        marks.draw_colourbar(figure, colours, heights_m, left_in, bar_in)
    if errors:
        values, at_in = np.concatenate([e.ravel() for e in errors]), left_in + bar_in + 0.5
        marks.draw_colourbar(figure, _errors_of(views), values, at_in, bar_in, "predicted − true height (m)")
    maps = [m for v in views for m in _maps(v)]
    labelled = any(v.class_map is not None for v in views)
    keys = marks.legend_keys(
        any_unknown=not maps and bool(np.isnan(heights_m).any()),
        any_nodata=any(not np.isfinite(shown).all() for shown in (*maps, *(v.image for v in views)))
        or any(v.class_map is None or (v.class_map < 0).any() for v in views if labelled),
        with_matches=not maps and any(v.predictions is not None for v in views),
        hatch="no data, or unknown" if maps else "no data, or not labelled" if labelled else "no data",
    )
    sensors, bands = [v.tile.sensor for v in views], views[0].bands
    sun = bands.optical and any(s.sun_azimuth_deg is not None for s in sensors)
    look = bands.sar and any(s.sar_look_azimuth_deg is not None for s in sensors)
    lean = bands.optical and any(s.view_off_nadir_deg and s.view_azimuth_deg is not None for s in sensors)
    arrows = [
        *["to the sun, with its elevation"] * bool(sun),
        *["view: to the optical sensor, with its angle off nadir"] * bool(lean),
        *["radar look, with its incidence"] * bool(look),
    ]
    words = f"arrows: {'; '.join(arrows)}" if arrows else ""
    marks.draw_keys(figure, keys, words, width_in - left_in)
