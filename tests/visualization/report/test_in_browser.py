"""The page in a browser: it draws, says nothing on the console, loads nothing, and a click shows the right building."""

from pathlib import Path

from fusiondet.buildings import Building
from fusiondet.io.vectors import Layer
from fusiondet.visualization.building_overlays import MATCH_COLOURS, height_colours
from fusiondet.visualization.report import write_report

import numpy as np
import pytest
import rasterio
from matplotlib.colors import to_rgb
from rasterio.transform import from_bounds
from rasterio.warp import transform_bounds
from shapely.affinity import translate
from shapely.geometry import Polygon, box
from shapely.geometry.base import BaseGeometry

GROUND = (208, 208, 204)
UNKNOWN = (130, 130, 130)
CHOSEN = (0, 229, 255)
EVIL = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"


def square(x: float) -> BaseGeometry:
    """20 m wide, around (x, 0) of the layer; the layer lies somewhere in the Netherlands."""
    return box(155_000 + x - 10, 463_000 - 10, 155_000 + x + 10, 463_000 + 10)


def row_of_three() -> list[Building]:
    """Known, unknown and known height, at -40, 0 and 40 m."""
    return [
        Building(square(-40), 10.0, 8.0, 13.0, 0.9, id="west"),
        Building(square(0), None, score=0.5, id=EVIL),
        Building(square(40), 30.0, 26.0, 36.0, 0.7, id="east"),
    ]


def on_map(x: float) -> float:
    """Share of the map's width at which x metres lie: it shows 106 % of the 100 m from edge to edge."""
    return 0.5 + x / 106


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("report") / "row.html"
    truth = [Building(square(-40), 12.0), Building(square(40), 30.0), Building(square(80), 5.0)]
    metadata = {"model": EVIL, EVIL: 1}
    write_report(row_of_three(), "EPSG:28992", path, truth=Layer(truth, "EPSG:28992"), metadata=metadata)
    return path


@pytest.fixture(scope="module")
def opened(browser, written):
    page = browser.open(written)
    yield page
    page.close()


@pytest.fixture
def page(opened):
    """The page as it was when it opened."""
    opened.run("report.choose(-1); Object.values(report.views).forEach((view) => view.reset())")
    return opened


def near(pixel, colour, tolerance: int = 6) -> bool:
    return bool(np.abs(np.asarray(pixel, int) - np.asarray(colour, int)).max() <= tolerance)


def colour_of(height_m: float) -> np.ndarray:
    scale = height_colours([10.0, 30.0])
    return np.round(255 * np.array(scale.to_rgba(height_m)[:3]))


def test_says_nothing_on_the_console_and_asks_for_nothing(page, written):
    assert page.complaints() == []
    assert page.requests() == [written.as_uri()]
    assert page.run("document.getElementById('trouble').textContent") == ""


def test_text_of_the_layer_stays_text(page):
    page.click("#map", on_map(0), 0.5)
    assert f"Building {EVIL}" in page.card()
    assert EVIL in page.run("document.querySelector('.facts').innerText")
    assert page.run("window.hacked === undefined")


def test_map_shows_each_building_in_the_colour_of_its_height_over_the_ground(page):
    picture = page.picture("#map")
    middle, width = picture.shape[0] // 2, picture.shape[1]
    # Without a picture below them, faces are nearly opaque.
    shown = [0.85 * c + 0.15 * np.array(GROUND) for c in (colour_of(10), np.array(UNKNOWN), colour_of(30))]
    for x, colour in zip((-40, 0, 40), shown):
        assert near(picture[middle, int(on_map(x) * width)], colour), x
    assert near(picture[middle, int(on_map(20) * width)], GROUND)


@pytest.mark.parametrize(
    ("x", "told"),
    [
        (-40, ("Building west", "10.0 m", "8.0 to 13.0 m", "400 m²", "0.90", "12.0 m", "−2.0 m", "matched")),
        (40, ("Building east", "30.0 m", "26.0 to 36.0 m", "0.70", "0.0 m")),
        (0, ("unknown", "0.50", "no true building here")),
        (20, ("Click a building",)),
    ],
)
def test_click_on_the_map_tells_the_numbers_of_that_building(page, x, told):
    page.click("#map", on_map(x), 0.5)
    assert [text for text in told if text not in page.card()] == []


def test_chosen_building_is_marked_in_every_view(page):
    for name in ("#map", "#city", "#errors"):
        assert not has(page.picture(name), CHOSEN)
    page.click("#map", on_map(40), 0.5)
    for name in ("#map", "#city", "#errors"):
        assert has(page.picture(name), CHOSEN, 40), name
        left, top, width, height = page.box(f"{name} + .pin")
        canvas = page.box(name)
        middle = (left + width / 2 - canvas[0]) / canvas[2], (top + height / 2 - canvas[1]) / canvas[3]
        # The ring is around what is coloured, to a few per cent: in 3-D around the roof.
        rows, columns = np.nonzero(near_all(page.picture(name), CHOSEN, 40))
        found = np.median(columns) / canvas[2], np.median(rows) / canvas[3]
        assert middle == pytest.approx(found, abs=0.08), name


def has(picture: np.ndarray, colour, tolerance: int = 6) -> bool:
    far = np.abs(picture.astype(int) - colour).max(axis=2)
    return int((far <= tolerance).sum()) > 50


def test_3d_view_stands_buildings_up_where_a_click_finds_them(page):
    picture = page.picture("#city")
    wall = np.round(colour_of(30) * np.array([0.62, 0.62, 0.62]))
    assert has(picture, colour_of(30)) and has(picture, wall, 45)
    # The camera looks at the middle of the layer, from the south and a little from the east: 30 m are up and right.
    inside = np.argwhere(np.abs(picture.astype(int) - colour_of(30)).max(axis=2) <= 3)
    y, x = np.median(inside, axis=0)
    page.click("#city", (x + 0.5) / picture.shape[1], (y + 0.5) / picture.shape[0])
    assert "Building east" in page.card()


def test_unknown_height_lies_flat_and_grey_in_3d(page):
    assert has(page.picture("#city"), UNKNOWN)
    # From the side nothing of it stands up, unlike its neighbours. Above are the caption's greys.
    page.run("report.views.city.turn(0, -9)")
    side = page.picture("#city")[40:]
    flat, tall = (
        np.argwhere(near_all(side, c, t))[:, 0] for c, t in ((UNKNOWN, 2), (colour_of(30) * 0.75, 40))
    )
    assert len(tall) > 50
    assert not len(flat) or np.ptp(flat) < 0.2 * np.ptp(tall)


def near_all(picture: np.ndarray, colour, tolerance: int) -> np.ndarray:
    return np.abs(picture.astype(int) - np.asarray(colour)).max(axis=2) <= tolerance


def test_dragging_turns_the_3d_view_and_moves_the_map(page):
    for name in ("#city", "#map"):
        before = page.picture(name)
        left, top, width, height = page.box(name)
        x, y = left + width / 2, top + height / 2
        page.mouse("mousePressed", x, y, button="left", buttons=1, clickCount=1)
        page.mouse("mouseMoved", x + 60, y + 20, button="left", buttons=1)
        page.mouse("mouseReleased", x + 60, y + 20, button="left", clickCount=1)
        after = page.picture(name)
        assert (before != after).any(axis=2).mean() > 0.02, name
        assert "Click a building" in page.card(), "a drag is no click"
    # What was in the middle of the map is 60 px further right, and is found there.
    page.click("#map", 0.5 + 60 / width, 0.5 + 20 / height)
    assert "no true building here" in page.card()


def test_colours_follow_the_choice_and_missed_buildings_are_drawn_with_the_matches(page):
    def choose(mode: str):
        page.run(
            f"(() => {{ const m = document.getElementById('mode'); m.value = '{mode}';"
            "m.dispatchEvent(new Event('change')); })()"
        )

    # At 80 m, outside of what the layer fills.
    page.run("report.views.map.zoom(2)")
    choose("match")
    picture = page.picture("#map")
    middle, width = picture.shape[0] // 2, picture.shape[1]
    at = {x: int((0.5 + x / 212) * width) for x in (-40, 0, 80)}
    for x, name in ((-40, "matched"), (0, "false"), (80, "missed")):
        seen = 0.85 * 255 * np.array(to_rgb(MATCH_COLOURS[name])) + 0.15 * np.array(GROUND)
        assert near(picture[middle, at[x]], seen), name
    assert "missed" in page.run("document.getElementById('legend').innerText")
    choose("height")
    picture = page.picture("#map")
    assert near(picture[middle, at[80]], GROUND)
    assert near(picture[middle, at[-40]], 0.85 * colour_of(10) + 0.15 * np.array(GROUND))


def test_click_on_a_dot_of_a_chart_shows_its_building(page):
    # Where Plotly put the dot of "west": true 12 m, predicted 10 m.
    x, y = page.run(
        "(() => { const l = document.getElementById('chart-truth')._fullLayout, a = l.xaxis, b = l.yaxis;"
        "return [a._offset + a.l2p(12), b._offset + b.l2p(10)]; })()"
    )
    _, _, width, height = page.box("#chart-truth")
    page.click("#chart-truth", x / width, y / height)
    page.wait("report.picked === 0")
    assert "Building west" in page.card()


def test_charts_are_drawn_and_none_offers_to_send_them_away(page):
    drawn = page.run(
        "[...document.querySelectorAll('.chart')].map((c) => [c.id, c.querySelectorAll('svg').length > 0])"
    )
    names = {"heights", "areas", "scores", "intervals", "truth", "errors", "precision"}
    assert dict(drawn) == {f"chart-{name}": True for name in names}
    buttons = page.run("[...document.querySelectorAll('.modebar-btn')].map((b) => b.dataset.title)")
    assert buttons and not [b for b in buttons if "loud" in b or "hare" in b or "dit" in b]


def test_picture_lies_under_the_buildings_where_they_are(browser, tmp_path):
    # Red west and blue east of x = 0, in Web Mercator, whose metres are too long.
    pixels = np.zeros((3, 60, 160), np.uint8)
    pixels[0, :, :80], pixels[2, :, 80:] = 200, 200
    bounds = transform_bounds("EPSG:28992", "EPSG:3857", 154_920, 462_970, 155_080, 463_030)
    with rasterio.open(
        tmp_path / "image.tif", "w", driver="GTiff", width=160, height=60, count=3, dtype="uint8",
        crs="EPSG:3857", transform=from_bounds(*bounds, 160, 60),
    ) as target:  # fmt: skip
        target.write(pixels)
    write_report(row_of_three(), "EPSG:28992", tmp_path / "page.html", image=tmp_path / "image.tif")
    page = browser.open(tmp_path / "page.html")
    picture = page.picture("#map").astype(int)
    middle, width = picture.shape[0] // 2, picture.shape[1]
    left, right = (picture[middle, int(on_map(x) * width)] for x in (-20, 20))
    assert left[0] > left[2] + 100 and right[2] > right[0] + 100
    assert page.complaints() == []
    page.close()


def test_page_without_buildings_draws_too(browser, tmp_path):
    write_report([], "EPSG:28992", tmp_path / "none.html", truth=Layer([], "EPSG:28992"))
    page = browser.open(tmp_path / "none.html")
    assert page.complaints() == []
    assert near(page.picture("#map")[260, 300], GROUND)
    page.click("#map", 0.5, 0.5)
    page.click("#city", 0.5, 0.5)
    assert "Click a building" in page.card()
    page.close()


def test_browser_without_webgl_says_so_and_shows_the_charts(browser, written):
    no_webgl = """const real = HTMLCanvasElement.prototype.getContext;
        HTMLCanvasElement.prototype.getContext = function (kind, ...more) {
            return kind === "webgl2" ? null : real.call(this, kind, ...more); };"""
    page = browser.open(written, before=no_webgl)
    assert "no WebGL 2" in page.run("document.getElementById('trouble').innerText")
    assert page.box("#map")[3] == 0 and page.run("document.querySelectorAll('.chart svg').length") > 6
    assert not [c for c in page.complaints() if "exceptionDetails" in c]
    page.close()


@pytest.mark.slow
def test_fifty_thousand_buildings_stay_usable(browser, tmp_path):
    n, side = 50_000, 224
    shape = Polygon([(0, 0), (12, 0), (12, 5), (6, 5), (6, 10), (3, 11), (1, 10), (0, 10)])
    heights_m = np.random.default_rng(0).uniform(3, 40, n).tolist()
    buildings = [
        Building(
            translate(shape, 155_000 + 18 * (k % side), 463_000 + 18 * (k // side)),
            h,
            0.9 * h,
            1.1 * h,
            0.8,
            id=k,
        )
        for k, h in enumerate(heights_m)
    ]
    write_report(buildings, "EPSG:28992", tmp_path / "city.html")
    assert (tmp_path / "city.html").stat().st_size < 40e6
    page = browser.open(tmp_path / "city.html")
    assert page.complaints() == []
    # In software, on a busy machine; a graphics card takes a fraction.
    assert page.run("report.first_draw_ms") < 20_000
    assert page.run("performance.memory.usedJSHeapSize") < 300e6
    # The lower left quarter of its box belongs to the building, whatever the other half of the L looks like.
    page.run("report.views.map.show(31_415)")
    _, _, width, height = page.box("#map")
    metres = page.run("report.views.map.metresPerPixel()")
    page.click("#map", 0.5 - 3 / metres / width, 0.5 + 3 / metres / height)
    assert "Building 31415" in page.card()
    page.close()
