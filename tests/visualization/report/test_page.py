"""The page as text: nothing of the data can break out of its place, and what cannot be reported is said."""

import base64
import hashlib
import html
import json
import re

from fusiondet.buildings import Building
from fusiondet.errors import InputError
from fusiondet.io.layer_writer import write_buildings
from fusiondet.io.vectors import Layer, transform_layer
from fusiondet.visualization.report import read_reported, write_report
from fusiondet.visualization.report.page import page
from tests.support.messages import raises_naming

import numpy as np
import pytest
import rasterio
from affine import Affine
from plotly.offline import get_plotlyjs
from shapely.affinity import translate
from shapely.geometry import MultiPolygon, Polygon, box

RD = "EPSG:28992"
EVIL = "</script><script>alert(1)</script><!-- \" ' & \u2028"


def buildings() -> list[Building]:
    courtyard = Polygon([(0, 0), (20, 0), (20, 20), (0, 20)], [[(5, 5), (5, 15), (15, 15), (15, 5)]])
    outlines = (courtyard, box(30, 0, 40, 10), MultiPolygon([box(50, 0, 55, 5), box(60, 0, 65, 5)]))
    moved = [_at(outline) for outline in outlines]
    return [
        Building(moved[0], 10.0, 8.0, 13.0, 0.9, id="a", height_stat="median"),
        Building(moved[1], None, score=0.8, id=None),
        Building(moved[2], 30.0, 26.0, 36.0, 0.7, id=EVIL),
    ]


def _at(outline, x: float = 155_000, y: float = 463_000):
    return translate(outline, x, y)


def data_of(text: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])


def unpacked(text: str, dtype: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype)


def test_identifiers_come_through_whole_and_end_no_element():
    text = page(buildings(), RD, metadata={EVIL: EVIL, "nested": {"k": [EVIL]}}, title=EVIL)
    assert data_of(text)["ids"] == ["a", "2", EVIL]
    # The data, Plotly and the viewer: three elements, each ended once.
    assert len(re.findall(r"<script[ >]", text.replace(_plotly(), ""))) == 3
    assert text.replace(_plotly(), "").count("</script>") == 3
    assert text.count(html.escape(EVIL)) >= 3


def _plotly() -> str:
    return get_plotlyjs()


def test_policy_allows_the_two_scripts_that_are_there_and_no_address():
    text = page(buildings(), RD)
    policy = html.unescape(re.search(r'Content-Security-Policy" content="(.*?)">', text)[1])
    scripts = re.findall(r"<script>(.*?)</script>", text, re.S)
    assert len(scripts) == 2
    for script in scripts:
        assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy
    assert policy.startswith("default-src 'none'") and "http" not in policy and "*" not in policy
    assert not re.findall(r"(?:src|href)=", text.replace(_plotly(), "").replace(scripts[1], ""))


def test_numbers_of_each_building_are_in_the_page():
    columns = {k: unpacked(v, "<f4") for k, v in data_of(page(buildings(), RD))["columns"].items()}
    np.testing.assert_allclose(columns["height_m"], [10, np.nan, 30])
    np.testing.assert_allclose(columns["height_p16_m"], [8, np.nan, 26])
    np.testing.assert_allclose(columns["score"], [0.9, 0.8, 0.7])
    # The Dutch grid is 0.01 % small here; the courtyard is no part of the building.
    np.testing.assert_allclose(columns["area_m2"], [300, 100, 50], rtol=5e-4)


def test_summary_counts_what_is_unknown():
    text = page(buildings(), RD)
    assert "<b>3</b><span>buildings" in text and "<b>2</b><span>with a height" in text
    assert "<b>1</b><span>height unknown (flat, grey)" in text
    assert "median (1)" in text  # the statistic, of those that state one


def test_all_unknown_or_nothing_at_all_is_a_page_without_plotly_charts_of_it():
    bare = page([Building(_at(box(0, 0, 1, 1)))], RD)
    assert set(data_of(bare)["charts"]) == {"areas"}
    empty = page([], None)
    data = data_of(empty)
    assert data["charts"] == {} and data["count"] == 0 and _plotly() not in empty
    assert "There are no buildings" in empty and "units taken to be metres" in empty


def test_truth_brings_its_numbers_from_another_crs():
    truth = [Building(b.polygon, 12.0) for b in buildings()[:2]]
    text = page(buildings(), RD, truth=transform_layer(Layer(truth, RD), "EPSG:4326"))
    columns = {k: unpacked(v, "<f4") for k, v in data_of(text)["columns"].items()}
    np.testing.assert_allclose(columns["truth_m"], [12, 12, np.nan])
    np.testing.assert_allclose(columns["error_m"], [-2, np.nan, np.nan])
    assert columns["matched"].tolist() == [1, 1, 0]
    assert "<b>−2.00 m</b><span>bias" in text and "<b>66.7 %</b><span>precision" in text


def test_same_layer_same_bytes(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_report(buildings(), RD, tmp_path / name / "page.html", truth=Layer(buildings(), RD))
    assert (tmp_path / "a/page.html").read_bytes() == (tmp_path / "b/page.html").read_bytes()


def test_names_that_are_no_unicode_do_not_stop_the_page(tmp_path):
    building = Building(_at(box(0, 0, 1, 1)), 3.0, id="b\udcff")
    write_report([building], RD, tmp_path / "page.html", metadata={"input": "\udce9.tif"})
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert data_of(text)["ids"] == ["b?"] and "?.tif" in text


def test_page_that_exists_is_kept_unless_told(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("mine")
    with pytest.raises(InputError, match="already exists"):
        write_report([], RD, path)
    assert path.read_text() == "mine"
    write_report([], RD, path, overwrite=True)
    assert "There are no buildings" in path.read_text(encoding="utf-8")


def raster(path, crs, x: float = 155_000):
    with rasterio.open(
        path, "w", driver="GTiff", width=100, height=100, count=1, dtype="uint8", crs=crs,
        transform=Affine(1, 0, x, 0, -1, 463_080),
    ) as target:  # fmt: skip
        target.write(np.full((1, 100, 100), 90, np.uint8))
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: {"crs": "EPSG:nonsense"}, "not understood"),
        (lambda d: {"image": d / "missing.tif"}, "no such file"),
        (lambda d: {"image": raster(d / "bare.tif", None)}, "bare.tif has no CRS"),
        (lambda d: {"image": raster(d / "far.tif", RD, 300_000)}, "far.tif: lies elsewhere"),
        (lambda d: {"image": raster(d / "im.tif", RD), "crs": None}, "layer of buildings has no CRS"),
        (lambda d: {"truth": Layer(buildings(), None)}, "truth layer has no CRS"),
        (lambda d: {"buildings": [Building(Polygon(), id="flat")]}, "building 'flat' .* no outline"),
    ],
)
def test_what_cannot_be_reported_is_said_and_leaves_nothing(tmp_path, make, message):
    (tmp_path / "out").mkdir()
    options = {"buildings": buildings(), "crs": RD, **make(tmp_path)}
    with pytest.raises(InputError, match=message):
        write_report(options.pop("buildings"), options.pop("crs"), tmp_path / "out/page.html", **options)
    assert list((tmp_path / "out").iterdir()) == []


def test_tool_reports_own_layers_with_their_metadata_and_any_other(tmp_path, load_tool, capsys):
    layer = tmp_path / "city.gpkg"
    write_buildings(buildings(), RD, layer, metadata={"model": "sixteen.pth"})
    tool = load_tool("visualize")
    files = ["--buildings", str(layer), "--truth", str(layer), "--out", str(tmp_path / "a.html")]
    assert tool.main(["report", *files]) == 0
    assert f"wrote {tmp_path / 'a.html'}" in capsys.readouterr().out
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "sixteen.pth" in text and "city.gpkg" in text
    assert data_of(text)["ids"] == ["a", "2", EVIL]
    assert "AP50 100.0" in text
    other = tmp_path / "other.geojson"
    outline = box(5, 52, 5.001, 52.001).__geo_interface__
    feature = {"type": "Feature", "properties": {"h": 7.5}, "geometry": outline}
    other.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    found, crs, metadata = read_reported(other, "h")
    assert [b.height_m for b in found] == [7.5] and crs == "EPSG:4326" and metadata == {}
    tool.main(["report", "--buildings", str(other), "--height", "h", "--out", str(tmp_path / "b.html")])
    assert "<b>7.5 m</b><span>median height" in (tmp_path / "b.html").read_text(encoding="utf-8")
    with pytest.raises(InputError, match="already exists"):
        tool.main(["report", "--buildings", str(tmp_path / "never.gpkg"), "--out", str(tmp_path / "b.html")])
    with raises_naming("never.gpkg"):
        tool.main(["report", "--buildings", str(tmp_path / "never.gpkg"), "--out", str(tmp_path / "c.html")])
