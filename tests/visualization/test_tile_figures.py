"""Figures of tiles: which panels there are, what stands on them, and that odd tiles work."""

from fusiondet.buildings import Building, SensorGeometry
from fusiondet.errors import InputError
from fusiondet.io.bands import BandSpec
from fusiondet.visualization import figure_array, overview_figure, tile_figure
from tests.support.figures import colourbars, headings, keys, texts, view

import numpy as np
import pytest
from matplotlib.patches import FancyArrow
from shapely.geometry import box


def test_truth_only_has_optical_sar_and_buildings_with_a_scale_in_metres():
    figure = tile_figure(view(buildings=[Building(box(4, 4, 20, 20), 8.0)]))
    assert headings(figure) == ["optical", "SAR VV (dB)", "buildings, height in m"]
    assert colourbars(figure) == ["height above ground (m)"]
    assert keys(figure) == []
    assert "a.tif" in texts(figure) and "48 × 32 px · 0.5 m/px · 1 building" in texts(figure)
    outlines = [len(ax.collections) for ax in figure.axes[:3]]
    assert outlines == [0, 0, 1], "image panels stay free of outlines"


def test_with_predictions_there_is_truth_prediction_and_match_side_by_side():
    truth, predicted = [Building(box(4, 4, 20, 20), 8.0)], [Building(box(4, 4, 20, 20), 9.0, score=0.9)]
    figure = tile_figure(view(buildings=truth, predictions=predicted, matches=[0]))
    expected = ["truth, height in m", "prediction, height in m", "match at IoU ≥ 0.5"]
    assert headings(figure)[2:] == expected
    assert keys(figure) == ["matched", "missed", "false"]
    assert any(text.endswith("1 predicted") for text in texts(figure))


@pytest.mark.parametrize(
    ("bands", "expected"),
    [
        (BandSpec(optical=("pan",)), ["optical: pan", "buildings"]),
        (BandSpec(optical=(), sar=("HH",), sar_scale="stretched_uint8"), ["SAR HH (stretched)", "buildings"]),
        (
            BandSpec(optical=("blue", "green", "red", "nir"), sar=("VH", "VV"), sar_scale="db"),
            ["optical", "SAR: VV, VH, VV−VH as R, G, B", "buildings"],
        ),
    ],
)
def test_panels_follow_the_bands(bands, expected):
    assert headings(tile_figure(view(bands))) == expected


def test_all_heights_unknown_no_colourbar_but_a_key():
    figure = tile_figure(view(buildings=[Building(box(4, 4, 20, 20))]))
    assert colourbars(figure) == [] and keys(figure) == ["height unknown"]


def test_a_tile_without_its_sar_is_hatched_and_explained():
    one = view(buildings=[Building(box(4, 4, 20, 20), 3.0)])
    one.image[3] = np.nan
    figure = tile_figure(one)
    assert keys(figure) == ["no data"]
    shown = figure.axes[1].images[0].get_array()
    assert set(np.unique(shown)) == {190, 214}


def test_nothing_at_all_still_draws():
    empty = view(BandSpec(optical=("pan",)), predictions=[])
    empty.image[:] = np.nan
    empty.tile.gsd_m = float("nan")
    figure = tile_figure(empty)
    assert "48 × 32 px · GSD unknown · 0 buildings · 0 predicted" in texts(figure)
    assert figure_array(figure).ndim == 3


def test_without_optical_pixels_the_outlines_stand_on_sar():
    one = view()
    one.image[:3] = np.nan
    background = figure_background(tile_figure(one))
    assert background.std() > 5 and set(np.unique(background)) != {190, 214}


def figure_background(figure):
    return np.asarray(figure.axes[2].images[0].get_array())


def test_overview_is_a_grid_under_one_height_scale():
    views = [view(buildings=[Building(box(4, 4, 20, 20), h)]) for h in (4.0, 40.0, 7.0)]
    figure = overview_figure(views)
    assert len(headings(figure)) == 9 and len(colourbars(figure)) == 1
    edge = [tuple(ax.collections[0].get_edgecolor()[0]) for ax in figure.axes if ax.collections][:3]
    assert len(set(edge)) == 3
    panels = [ax for ax in figure.axes if ax.get_title()]
    boxes = [ax.get_position() for ax in panels]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    width, height = figure.get_size_inches() * figure.dpi
    assert figure_array(figure).shape == (int(height), int(width), 3)


def test_no_view_is_an_input_error():
    with pytest.raises(InputError, match="no tile"):
        overview_figure([])


def test_long_names_are_shortened_in_the_middle_and_do_not_run_into_the_facts():
    one = view(BandSpec())
    one.tile.file_name = "rgb/SN6_Train_AOI_11_Rotterdam_PS-RGB_20190822070610_20190822070846_tile_3721.tif"
    figure = overview_figure([one])
    name, facts = figure.texts[:2]
    assert "…" in name.get_text() and name.get_text().endswith("3721.tif")
    figure_array(figure)
    assert not name.get_window_extent().overlaps(facts.get_window_extent())


def arrow(figure, name):
    """(right, down) unit vector of the drawn arrow, or None."""
    found = [a for ax in figure.axes for a in ax.findobj(FancyArrow) if a.get_gid() == f"{name} arrow"]
    if not found:
        return None
    right, up = found[0]._dx, found[0]._dy
    return np.round(np.array([right, -up]) / np.hypot(right, up), 6)


def test_arrows_point_to_the_sun_and_along_the_look():
    sensor = SensorGeometry(sun_azimuth_deg=180.0, sun_elevation_deg=40.0, sar_look_azimuth_deg=90.0)
    figure = tile_figure(view(sensor=sensor))
    np.testing.assert_allclose(arrow(figure, "sun"), [0, 1], atol=1e-6)
    np.testing.assert_allclose(arrow(figure, "look"), [1, 0], atol=1e-6)
    words = [t.get_text() for ax in figure.axes for t in ax.findobj(lambda a: hasattr(a, "get_text"))]
    assert "sun 40°" in words and "look" in words
    assert any(text.startswith("arrows: to the sun") for text in texts(figure))


def test_a_leaning_picture_says_where_its_sensor_was():
    leaning, straight = (
        tile_figure(view(sensor=SensorGeometry(view_azimuth_deg=270.0, view_off_nadir_deg=off_nadir_deg)))
        for off_nadir_deg in (25.0, 0.0)
    )
    np.testing.assert_allclose(arrow(leaning, "view"), [-1, 0], atol=1e-6)
    assert "arrows: view: to the optical sensor, with its angle off nadir" in texts(leaning)
    assert arrow(straight, "view") is None and not any(t.startswith("arrows") for t in texts(straight))


def test_unknown_directions_have_no_arrow():
    figure = tile_figure(view())
    assert arrow(figure, "sun") is None and arrow(figure, "look") is None
    assert not any(text.startswith("arrows") for text in texts(figure))


def test_the_scale_bar_has_a_round_length():
    ax = tile_figure(view(size=(64, 128))).axes[0]
    (left, right), label = ax.lines[0].get_xdata(), ax.texts[0].get_text()
    assert label == "20 m" and right - left == pytest.approx(40)


# ---- Maps ----


def maps(size=(32, 48)):
    """True heights with one building of 20 m and an unknown corner, predicted ones of 12 m there, 0.4 m elsewhere."""
    truth_m, predicted_m = np.zeros(size, np.float32), np.full(size, 0.4, np.float32)
    truth_m[8:20, 8:20], predicted_m[8:20, 8:20] = 20, 12
    truth_m[:4, :4] = np.nan
    return {"truth_map_m": truth_m, "height_map_m": predicted_m}


def shown(figure, heading):
    """The picture (H, W, 3) under `heading`."""
    (ax,) = (ax for ax in figure.axes if ax.get_title() == heading)
    return np.asarray(ax.images[0].get_array())


TRUE, PREDICTED, ERROR = "true height", "predicted height", "error, predicted − true height"
FOOTPRINT = "footprint probability, black 0 to white 1"


def test_maps_take_the_place_of_outlines_under_one_scale_in_metres():
    figure = tile_figure(view(buildings=[Building(box(8, 8, 20, 20), 20.0)], **maps()))
    assert headings(figure) == ["optical", "SAR VV (dB)", TRUE, PREDICTED, ERROR]
    assert colourbars(figure) == ["height above ground (m)", "predicted − true height (m)"]
    assert keys(figure) == ["no data, or unknown"]
    assert not any(ax.collections for ax in figure.axes[:5]), "no outlines"
    swapped = maps()
    swapped["height_map_m"], swapped["truth_map_m"][:] = swapped["truth_map_m"].copy(), 12
    other = tile_figure(view(**swapped))
    np.testing.assert_array_equal(shown(figure, TRUE)[10, 10], shown(other, PREDICTED)[10, 10])


def test_unknown_pixels_are_hatched_and_the_ground_is_dark():
    figure = tile_figure(view(**maps()))
    truth, error = shown(figure, TRUE), shown(figure, ERROR)
    for picture in (truth, error):
        assert set(np.unique(picture[:4, :4])) == {190, 214}
    assert truth[30, 30].max() < 30 < 60 < truth[10, 10].max()
    red, _, blue = error[10, 10].astype(int)
    assert blue > red, "8 m too low is blue"
    assert error[30, 30].min() > 230, "0.4 m is next to nothing"


def test_a_footprint_map_alone_stands_beside_the_outlines():
    footprint = np.linspace(0, 1, 32 * 48).reshape(32, 48)
    figure = tile_figure(view(buildings=[Building(box(4, 4, 20, 20), 8.0)], footprint_map=footprint))
    assert headings(figure)[2:] == ["buildings, height in m", FOOTPRINT]
    assert shown(figure, FOOTPRINT)[0, 0].tolist() == [0, 0, 0]
    assert shown(figure, FOOTPRINT)[-1, -1].tolist() == [255, 255, 255]


def test_a_tile_without_maps_among_others_is_hatched():
    figure = overview_figure([view(**maps()), view()])
    pictures = [ax.images[0].get_array() for ax in figure.axes if ax.get_title() == PREDICTED]
    assert [set(np.unique(p)) == {190, 214} for p in pictures] == [False, True]


def test_maps_of_bare_ground_or_of_nothing_still_draw():
    ground = np.zeros((32, 48))
    figure = tile_figure(view(truth_map_m=ground, height_map_m=ground))
    assert colourbars(figure) == ["predicted − true height (m)"] and figure_array(figure).ndim == 3
    figure = tile_figure(view(height_map_m=np.full((32, 48), np.nan)))
    assert headings(figure)[2:] == ["buildings", PREDICTED] and keys(figure) == ["no data, or unknown"]
