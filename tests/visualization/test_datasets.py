"""From files to pictures: which tiles, what matches, and the tool that writes the PNGs."""

import importlib.util
import json
from pathlib import Path

from fusiondet.buildings import Building, SensorGeometry, Tile
from fusiondet.errors import InputError
from fusiondet.evaluation.dense import DenseScores
from fusiondet.geometry.painting import polygon_to_mask
from fusiondet.io.bands import BandSpec
from fusiondet.io.coco import Dataset, encode_rle, prediction_record, read_coco, write_coco
from fusiondet.io.pixel_classes import ClassList
from fusiondet.visualization import (
    building_from_prediction,
    dataset_overview,
    figure_array,
    match_tile,
    prediction_overview,
)
from fusiondet.visualization.datasets import choose_tiles, find_tile
from fusiondet.visualization.panels import NODATA_GREYS
from tests.support.messages import raises_naming

import numpy as np
import pytest
import rasterio
from PIL import Image
from shapely.affinity import rotate
from shapely.geometry import box

SIZE = 64
SENSOR = SensorGeometry(sun_azimuth_deg=150.0, sun_elevation_deg=40.0, sar_look_azimuth_deg=90.0)


def write_raster(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = {"count": len(array), "height": array.shape[1], "width": array.shape[2], "dtype": array.dtype}
    with rasterio.open(path, "w", driver="GTiff", **shape) as target:
        target.write(array)


@pytest.fixture
def annotations(tmp_path):
    """Three tiles: two buildings, none and without SAR, one of unknown height."""
    rng = np.random.default_rng(0)
    buildings = (
        [Building(box(5, 5, 25, 25), 6.0), Building(box(35, 35, 60, 55), 12.0)],
        [],
        [Building(box(9, 9, 40, 40))],
    )
    tiles = []
    for k, own in enumerate(buildings):
        tile = Tile(f"rgb/{k}.tif", SIZE, SIZE, 0.5, sensor=SENSOR, buildings=own)
        write_raster(tmp_path / tile.file_name, rng.integers(1, 255, (3, SIZE, SIZE)).astype(np.uint8))
        if k != 1:
            tile.sar_file_name = f"sar/{k}.tif"
            write_raster(
                tmp_path / tile.sar_file_name, rng.normal(-10, 4, (1, SIZE, SIZE)).astype(np.float32)
            )
        tiles.append(tile)
    path = tmp_path / "annotations" / "val.json"
    write_coco(Dataset(tiles, BandSpec(sar=("HH",), sar_scale="db")), path)
    return path


def record(image_id, polygon, score=0.9, height_m=(5.0, 6.0, 7.0)):
    rle = encode_rle(polygon_to_mask(polygon, SIZE, SIZE))
    return prediction_record(image_id, score, polygon.bounds, rle, height_m)


RECORDS = [
    record(1, box(5, 5, 25, 24), 0.8),
    record(1, box(5, 6, 25, 25), 0.9),
    record(1, box(45, 5, 60, 20), 0.7),
    record(1, box(35, 35, 60, 55), 0.2, (9.0, 10.0, 13.0)),
    record(3, box(9, 9, 40, 41), 0.9, None),
]


def test_dataset_overview_draws_every_tile_also_without_sar(annotations):
    figure = dataset_overview(read_coco(annotations), n=9)
    headings = [ax.get_title() for ax in figure.axes if ax.get_title()]
    assert headings == ["optical", "SAR HH (dB)", "buildings, height in m"] * 3
    keys = [t.get_text() for t in figure.legends[0].get_texts()]
    assert keys == ["height unknown", "no data"]


def class_map_of(path, numbers, classes):
    write_raster(path.parents[1] / "classes" / "0.tif", np.asarray(numbers, np.uint8)[None])
    dataset = read_coco(path)
    dataset.tiles[0].class_file_name = "classes/0.tif"
    for tile in dataset.tiles:
        tile.buildings = []
    dataset.info |= classes.to_info()
    write_coco(dataset, path)
    return read_coco(path)


def test_classes_of_pixels_are_drawn_in_their_colours_with_their_names(annotations):
    numbers = np.repeat([[3], [7], [9], [0]], SIZE // 4, axis=0).repeat(SIZE, axis=1)
    classes = ClassList(("water", "a $wood$", "road", "never seen"), ((3,), (7,), (9,), (4,)), ((0,),))
    dataset = class_map_of(annotations, numbers, classes)
    figure = dataset_overview(dataset, n=3)
    headings = [ax.get_title() for ax in figure.axes if ax.get_title()]
    assert headings == ["optical", "SAR HH (dB)", "classes"] * 3, "no panel of buildings where there are none"
    picture = np.asarray(figure.axes[2].images[0].get_array())
    rows = [tuple(picture[y, 5]) for y in (8, 24, 40)]
    assert rows == list(classes.colours[:3]) and len({*rows}) == 3
    assert {*picture[48:].ravel()} == {*NODATA_GREYS}, "what is not labelled"
    texts = [t.get_text() for t in figure.texts]
    assert {"water", "a $wood$", "road"} <= {*texts} and "never seen" not in texts
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["no data, or not labelled"]
    dataset.tiles[1].buildings = [Building(box(5, 5, 25, 25), 6.0)]
    both = dataset_overview(dataset, n=3)
    assert [ax.get_title() for ax in both.axes][2:4] == ["classes", "buildings, height in m"]


def test_the_legend_holds_many_classes_with_long_names(annotations):
    names = [f"{'very ' * 20}long name {i}" for i in range(17)]
    numbers = np.arange(SIZE * SIZE).reshape(SIZE, SIZE) % 17
    classes = ClassList(tuple(names), tuple((i,) for i in range(17)))
    figure = dataset_overview(class_map_of(annotations, numbers, classes), name="0.tif")
    figure_array(figure)
    width, height = figure.get_size_inches() * figure.dpi
    boxes = [t.get_window_extent() for t in figure.texts if t.get_text().startswith("very")]
    assert len(boxes) == 17 and all(b.x1 <= width and b.y0 >= 0 for b in boxes)
    assert not any(a is not b and a.overlaps(b) for a in boxes for b in boxes)
    lowest = min(ax.get_window_extent().y0 for ax in figure.axes if ax.get_title())
    assert max(b.y1 for b in boxes) < lowest, "below the panels"


def test_prediction_overview_draws_confident_predictions_only(annotations):
    figure = prediction_overview(read_coco(annotations), RECORDS, name="0.tif", min_score=0.5)
    prediction, match = figure.axes[3:5]
    assert len(prediction.collections[0].get_paths()) == 3
    assert [len(c.get_paths()) for c in match.collections] == [1, 1, 2], "missed, matched, false"
    assert any(t.get_text().endswith("3 predicted") for t in figure.texts)
    nothing = prediction_overview(read_coco(annotations), [], n=3)
    assert all(not ax.collections for ax in nothing.axes if ax.get_title().startswith("prediction"))


def test_heights_per_pixel_stand_beside_painted_predictions(annotations):
    dataset = read_coco(annotations)
    truth = dataset_overview(dataset, n=3, height_labels="instances")
    assert [ax.get_title() for ax in truth.axes][2:3] == ["true height"]
    figure = prediction_overview(dataset, RECORDS, name="0.tif", height_labels="instances")
    panels = {ax.get_title(): np.asarray(ax.images[0].get_array()) for ax in figure.axes if ax.get_title()}
    true, predicted, error = list(panels.values())[2:]
    assert (predicted[10, 10] == true[10, 10]).all() and error[10, 10].min() > 230, "6 m are 6 m"
    assert predicted[50, 50].max() < 30 < 60 < true[50, 50].max(), "a score of 0.2 is not shown"
    red, _, blue = error[50, 50].astype(int)
    assert blue > red, "a missed building is too low"
    with pytest.raises(InputError, match="lidar"):
        dataset_overview(dataset, height_labels="lidar")


def test_the_best_score_takes_the_building(annotations):
    tile = read_coco(annotations).tiles[0]
    best_first = sorted(RECORDS[:4], key=lambda r: -r["score"])
    assert match_tile(tile, best_first).tolist() == [0, -1, -1, 1]
    assert match_tile(tile, []).tolist() == []
    assert match_tile(read_coco(annotations).tiles[1], best_first[:1]).tolist() == [-1]


@pytest.mark.parametrize("angle", [0, 10, 30, 45])
def test_prediction_becomes_a_building_without_stairs(angle):
    drawn = rotate(box(20, 20, 44, 44), angle)
    building = building_from_prediction(record(1, drawn), SIZE, SIZE)
    assert building.polygon.area == pytest.approx(polygon_to_mask(drawn, SIZE, SIZE).sum(), rel=0.01)
    assert building.polygon.length <= 1.04 * drawn.length, "stairs would be 1.41 times as long at 45 degrees"
    heights = building.height_m, building.height_p16_m, building.height_p84_m
    assert (*heights, building.score) == (6.0, 5.0, 7.0, 0.9)


def test_thin_empty_and_polygon_predictions():
    thin = building_from_prediction(record(1, box(3, 3, 40, 4)), SIZE, SIZE)
    assert thin.polygon.bounds == pytest.approx((3, 3, 40, 4), abs=0.6)
    assert building_from_prediction(record(1, box(7, 7, 8, 8)), SIZE, SIZE).polygon.area > 0
    empty = record(1, box(1, 1, 2, 2)) | {"segmentation": encode_rle(np.zeros((SIZE, SIZE), bool))}
    assert building_from_prediction(empty, SIZE, SIZE) is None
    rings = record(1, box(1, 1, 2, 2)) | {"segmentation": [[2, 2, 12, 2, 12, 12, 2, 12]]}
    assert building_from_prediction(rings, SIZE, SIZE).polygon.equals(box(2, 2, 12, 12))


def test_tiles_are_spread_and_those_with_content_come_first():
    tiles = [Tile(f"{k}.tif", 8, 8, 1.0) for k in range(10)]
    content = [k % 2 for k in range(10)]
    assert [t.file_name for t in choose_tiles(tiles, 2, content)] == ["3.tif", "7.tif"]
    assert len(choose_tiles(tiles, 7, content)) == 7
    assert [t.file_name for t in choose_tiles(tiles, 60, content)] == [t.file_name for t in tiles]
    for n in (0, 61):
        with raises_naming("1 to 60"):
            choose_tiles(tiles, n, content)
    with pytest.raises(InputError, match="list no image"):
        choose_tiles([], 1, [])


def test_a_tile_is_found_by_any_form_of_its_name(annotations):
    dataset = read_coco(annotations)
    assert {find_tile(dataset, name).id for name in ("rgb/1.tif", "1.tif", "1")} == {2}
    with raises_naming("'7.tif'", "3 images", "Similar: rgb/"):
        find_tile(dataset, "7.tif")


# ---- the tool ----


@pytest.fixture(scope="module")
def tool():
    path = Path(__file__).resolve().parents[2] / "tools" / "visualize.py"
    spec = importlib.util.spec_from_file_location("visualize", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tool_draws_a_dataset_into_a_folder_or_a_file(tool, annotations, tmp_path, capsys):
    assert tool.main(["dataset", "--annotations", str(annotations), "--out", str(tmp_path / "o")]) == 0
    assert capsys.readouterr().out == f"wrote {tmp_path / 'o' / 'overview.png'}\n"
    one = tmp_path / "one.png"
    tool.main(["dataset", "--annotations", str(annotations), "--image", "0.tif", "--out", str(one)])
    with Image.open(one) as picture:
        picture.load()
        assert picture.size[0] > 3 * 4.2 * 120


def test_tool_draws_predictions_beside_other_files_and_needs_overwrite(tool, annotations, tmp_path, capsys):
    predictions = tmp_path / "p.json"
    predictions.write_text(json.dumps(RECORDS))
    out = tmp_path / "demo"
    out.mkdir()
    (out / "metrics.json").write_text("{}")
    arguments = [
        "predictions",
        "--annotations",
        str(annotations),
        "--predictions",
        str(predictions),
        "--out",
        str(out),
    ]
    tool.main(arguments)
    assert {p.name for p in out.iterdir()} == {"metrics.json", "overview.png", "heights.png"}
    with Image.open(out / "heights.png") as picture:
        picture.load()
        assert picture.size == (1224, 588)
    with raises_naming("overwrite"):
        tool.main(arguments)
    tool.main([*arguments, "--overwrite"])


def test_tool_draws_heights_per_pixel(tool, annotations, tmp_path):
    out = ["--image", "0.tif", "--out", str(tmp_path / "o")]
    tool.main(["dataset", "--annotations", str(annotations), "--height-labels", "auto", *out])
    (tmp_path / "p.json").write_text(json.dumps(RECORDS))
    words = [
        "--annotations",
        str(annotations),
        "--predictions",
        str(tmp_path / "p.json"),
        *out,
        "--overwrite",
    ]
    tool.main(["predictions", *words, "--height-labels", "instances"])
    with Image.open(tmp_path / "o" / "overview.png") as picture:
        assert picture.size[0] > 5 * 3.2 * 120, "optical, SAR, truth, prediction, error"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--annotations", "nowhere.json"], "no such file"),
        (["--tiles", "0"], "1 to 60"),
        (["--image", "x.tif"], "not in the annotations"),
    ],
)
def test_tool_refuses_bad_input_and_writes_nothing(tool, annotations, tmp_path, options, message):
    out = tmp_path / "out"
    with pytest.raises(InputError, match=message):
        tool.main(["dataset", "--annotations", str(annotations), "--out", str(out), *options])
    assert not out.exists()


def test_a_missing_raster_is_named(tool, annotations, tmp_path):
    (tmp_path / "sar" / "0.tif").unlink()
    with raises_naming("sar/0.tif"):
        tool.main(["dataset", "--annotations", str(annotations), "--out", str(tmp_path / "o")])


def test_real_tile_with_black_border(shared_data, tmp_path):
    name = "SN6_Train_AOI_11_Rotterdam_PS-RGB_20190822070610_20190822070846_tile_3721.tif"
    source = shared_data("sn6-psrgb-3721") / name
    (tmp_path / name).symlink_to(source)
    write_coco(Dataset([Tile(name, 900, 900, 0.5)], BandSpec(), nodata=0), tmp_path / "a.json")
    figure = dataset_overview(read_coco(tmp_path / "a.json"))
    shown = np.asarray(figure.axes[0].images[0].get_array())
    hatched = np.isin(shown, (190, 214)).all(axis=2) & (np.ptp(shown, axis=2) == 0)
    assert hatched[:300].mean() > 0.99 and hatched[450:].mean() < 0.02


def test_tool_draws_delta1_of_the_tiles(tool, annotations, tmp_path, capsys):
    predictions = tmp_path / "p.json"
    predictions.write_text(json.dumps(RECORDS))
    arguments = ["delta1", "--annotations", str(annotations), "--predictions", str(predictions)]
    assert tool.main([*arguments, "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"wrote {tmp_path / 'delta1.png'}\n"
    with Image.open(tmp_path / "delta1.png") as picture:
        picture.load()
    with pytest.raises(InputError, match="already exists"):
        tool.main([*arguments, "--out", str(tmp_path)])
    with raises_naming("'ndsm'", "'instances'"):
        (tmp_path / "predictions.json").write_text("[]")
        DenseScores("ndsm", False, {}).write(tmp_path / "dense_scores.json")
        arguments[-1] = str(tmp_path / "predictions.json")
        tool.main([*arguments, "--height-labels", "instances", "--out", str(tmp_path / "other.png")])
    with pytest.raises(InputError, match="maps and no instances"):
        tool.main(["predictions", *arguments[1:], "--out", str(tmp_path / "o")])
