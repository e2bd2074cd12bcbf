"""Figures of tiles: image panels, outlines, arrows to the sun and along the radar's look, one legend in metres."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fusiondet.buildings import Building, Tile
from fusiondet.data.bands import BandSpec
from fusiondet.errors import InputError
from fusiondet.visualization import marks
from fusiondet.visualization.canvas import FAINT, INK, axes_in, new_figure
from fusiondet.visualization.outlines import draw_buildings, draw_matches, height_colours, known_height
from fusiondet.visualization.panels import (
    faded,
    optical_panel,
    polarisation_indexes,
    rgb_indexes,
    sar_panel,
)

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

MATCH_IOU = 0.5
_PANELS_PER_ROW = 6
_MARGIN_IN, _GAP_IN, _TITLE_IN, _LEGEND_IN = 0.2, 0.06, 0.48, 0.62
_MIN_WIDTH_IN = 6.4


@dataclass
class TileView:
    """One tile, ready to be drawn.

    Attributes:
        tile: its names, sensor geometry and true buildings.
        image: (C, H, W) float, optical bands then SAR bands in dB (or stretched), NaN = no data.
        bands: what the channels of `image` are.
        predictions: predicted buildings in the tile's pixels; None when the figure is about truth only.
        matches: index into the tile's buildings of every prediction, -1 for a false one.
    """

    tile: Tile
    image: np.ndarray
    bands: BandSpec
    predictions: list[Building] | None = None
    matches: Sequence[int] = field(default_factory=list)

    @property
    def optical(self) -> np.ndarray:
        """(C_optical, H, W)."""
        return self.image[: len(self.bands.optical)]

    @property
    def sar(self) -> np.ndarray:
        """(C_sar, H, W)."""
        return self.image[len(self.bands.optical) :]


def tile_figure(view: TileView, panel_in: float = 4.2) -> Figure:
    """One tile: optical, SAR and true buildings; with predictions also these, and which matched.

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
    heights = [b.height_m for v in views for b in (*v.tile.buildings, *(v.predictions or ()))]
    colours = height_colours(heights)
    panels = _panels(views, colours, any(known_height(h) for h in heights))
    aspect = float(np.clip(max(v.tile.height / v.tile.width for v in views), 0.4, 2.0))
    figure, axes = _grid(len(views), len(panels), panel_in, aspect)
    for view, row in zip(views, axes, strict=True):
        _write_title(row, view)
        for ax, (heading, paint) in zip(row, panels, strict=True):
            _prepare(ax, view.tile, heading)
            paint(ax, view)
    _write_legend(figure, axes, views, heights, colours)
    return figure


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
    if all(v.predictions is None for v in views):
        return [*panels, (f"buildings{unit}", truth)]
    match = (f"match at IoU ≥ {MATCH_IOU:g}", matched)
    return [*panels, (f"truth{unit}", truth), (f"prediction{unit}", predicted), match]


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


def _grid(n_tiles: int, n_panels: int, panel_in: float, aspect: float) -> tuple[Figure, list[list[Axes]]]:
    """Figure with `n_panels` axes per tile, tiles beside each other as long as six panels fit in a row."""
    per_row = min(n_tiles, max(1, _PANELS_PER_ROW // n_panels))
    rows = math.ceil(n_tiles / per_row)
    group_in = n_panels * panel_in + (n_panels - 1) * _GAP_IN
    used_in = per_row * group_in + (per_row - 1) * 2 * _MARGIN_IN
    row_in = _TITLE_IN + panel_in * aspect + 0.1
    figure = new_figure(max(used_in + 2 * _MARGIN_IN, _MIN_WIDTH_IN), rows * row_in + _LEGEND_IN)
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


def _write_legend(figure: Figure, axes: list[list[Axes]], views, heights, colours: ScalarMappable) -> None:
    """Colourbar, keys and the meaning of the arrows, as far as they occur."""
    width_in = figure.get_size_inches()[0]
    left_in = axes[0][0].get_position().x0 * width_in
    known = [h for h in heights if known_height(h)]
    if known:
        marks.draw_colourbar(figure, colours, max(known), left_in)
    keys = marks.legend_keys(
        any_unknown=len(known) < len(heights),
        any_nodata=any(not np.isfinite(v.image).all() for v in views),
        with_matches=any(v.predictions is not None for v in views),
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
