"""Rasters that are stored mirrored, and pairs of different extents: the network sees what it was trained on."""

import fusiondet.compat  # noqa: F401
from fusiondet.buildings import SensorGeometry
from fusiondet.errors import InputError
from fusiondet.inference import Predictor, predict_scene, predict_to_file
from fusiondet.io.bands import BandSpec
from fusiondet.io.scene_reader import SceneReader
from tests.support.scene_cases import LEFT, TOP, TRANSFORM, BlockFinder, checkpoint, plan_of

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from rasterio.warp import Resampling, reproject

WINDOWS = {"window_px": 96, "overlap_px": 40}
HEIGHT, WIDTH = 171, 246
# As stored: (columns, rows) from the other end.
MIRRORED = {"south-up": (False, True), "west-up": (True, False), "upside down": (True, True)}


@pytest.fixture(scope="module")
def both_weights(tmp_path_factory):
    """get(dropout) -> a checkpoint for red, green, blue and HH in dB; made once."""
    made = {}

    def get(dropout=0.0):
        if dropout not in made:
            options = ("MODEL.FUSION.MODALITY_DROPOUT.sar", str(dropout))
            made[dropout] = checkpoint(tmp_path_factory.mktemp("weights"), *options)
        return made[dropout]

    return get


class Looker(BlockFinder):
    """A `BlockFinder` that remembers what it saw."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def outputs(self, inputs, do_postprocess):
        self.seen += [(x["image"].numpy().copy(), dict(x["sensor"])) for x in inputs]
        return super().outputs(inputs, do_postprocess)


@pytest.fixture
def look(both_weights):
    """look(*paths, dropout, **options) -> (result, images that the network saw)."""

    def predict(*paths, dropout=0.0, **options):
        predictor = Predictor(both_weights(dropout), "cpu", build=False)
        predictor.model = Looker()
        return predict_scene(predictor, *paths, **{**WINDOWS, **options}), predictor.model.seen

    return predict


def store(path, array, transform=TRANSFORM, flips=(False, False), crs="EPSG:32631", **options):
    """Write (n, h, w) so that its columns and rows are stored from the other end, and it lies on the same ground."""
    n, height, width = array.shape
    if flips[0]:
        array, transform = array[:, :, ::-1], transform * Affine(-1, 0, width, 0, 1, 0)
    if flips[1]:
        array, transform = array[:, ::-1], transform * Affine(1, 0, 0, 0, -1, height)
    profile = {
        "driver": "GTiff",
        "count": n,
        "height": height,
        "width": width,
        "dtype": array.dtype,
    } | options
    with rasterio.open(path, "w", crs=crs, transform=transform, **profile) as file:
        file.write(array)
    return path


@pytest.fixture
def arrays(city):
    """(3, h, w) uint8 of a city with a corner without data, and (1, h, w) float32 dB."""
    rng = np.random.default_rng(0)
    rgb = rng.integers(90, 110, (3, HEIGHT, WIDTH)).astype(np.uint8)
    for (x0, y0, x1, y1), value in city.items():
        rgb[:, y0:y1, x0:x1] = value
    rgb[:, :40, :50] = 0
    return rgb, rng.normal(-10, 3, (1, HEIGHT, WIDTH)).astype(np.float32)


@pytest.fixture
def pair(arrays, tmp_path):
    """pair(flips of the optical raster, of SAR) -> their paths."""

    def write(optical=(False, False), sar=(False, False), **options):
        name = "".join("-+"[flip] for flip in (*optical, *sar))
        rgb = {"nodata": 0, "photometric": "RGB"}
        return (
            store(tmp_path / f"rgb{name}.tif", arrays[0], flips=optical, **rgb, **options),
            store(tmp_path / f"sar{name}.tif", arrays[1], flips=sar, **options),
        )

    return write


def facts(result):
    return [(b.polygon.wkb, b.score, b.height_m) for b in result.buildings]


def assert_same_images(seen, wanted):
    assert len(seen) == len(wanted) > 4
    for (image, sensor), (image_wanted, sensor_wanted) in zip(seen, wanted, strict=True):
        np.testing.assert_array_equal(image, image_wanted)
        assert sensor == sensor_wanted


class TestMirrored:
    @pytest.mark.parametrize("flips", MIRRORED.values(), ids=MIRRORED)
    def test_the_result_is_that_of_the_north_up_raster(self, pair, look, flips, tmp_path):
        sensor = SensorGeometry(sun_azimuth_deg=150.0, sun_elevation_deg=40.0)
        north, wanted = look(*pair(), sensor=sensor, height_path=tmp_path / "north.tif")
        stored, seen = look(*pair(flips, flips), sensor=sensor, height_path=tmp_path / "stored.tif")
        assert_same_images(seen, wanted)
        assert facts(stored) == facts(north) and stored.count > 10
        with rasterio.open(tmp_path / "north.tif") as a, rasterio.open(tmp_path / "stored.tif") as b:
            assert a.transform == b.transform == TRANSFORM
            np.testing.assert_array_equal(a.read(), b.read())
        ends = {(False, True): "rows run north", (True, False): "columns run west"}
        words = ends.get(flips, "columns run west and its rows run north")
        assert sum(f"its {words}; read from the other end" in note for note in stored.notes) == 2
        assert not any("other end" in note for note in north.notes)

    @pytest.mark.parametrize("flips", MIRRORED.values(), ids=MIRRORED)
    def test_one_of_the_two_alone(self, pair, look, flips):
        """The grids are one after that: nothing is warped, no number changes."""
        north, wanted = look(*pair())
        for rasters in (pair(flips), pair(sar=flips)):
            result, seen = look(*rasters)
            assert_same_images(seen, wanted)
            assert facts(result) == facts(north)

    def test_resampled_and_from_an_overview(self, pair, look):
        options = {"transform": TRANSFORM * Affine.scale(0.25)}
        images = []
        for rasters in (pair(**options), pair((False, True), (False, True), **options)):
            with rasterio.open(rasters[0], "r+") as file:
                file.build_overviews([3], Resampling.average)
            result, seen = look(*rasters, window_px=40, overlap_px=10, force_gsd=True)
            assert any("from its overview" in note for note in result.notes)
            assert any("resampled from 0.125 m" in note for note in result.notes)
            images.append(np.stack([image for image, _ in seen]))
        np.testing.assert_allclose(*images, atol=1e-3)

    def test_an_area_of_interest_is_where_it_was(self, pair, look):
        area = shapely.box(LEFT + 60, TOP - 80, LEFT + 120, TOP - 20)
        north, _ = look(*pair(), aoi=area)
        stored, _ = look(*pair((False, True), (False, True)), aoi=area)
        assert facts(stored) == facts(north) and 0 < north.count < 12

    def test_sar_on_a_mirrored_grid_of_another_size(self, arrays, pair, look, tmp_path):
        rgb, _ = pair()
        coarse = store(tmp_path / "north.tif", arrays[1][:, ::2, ::2], TRANSFORM * Affine.scale(2))
        mirrored = store(
            tmp_path / "mirrored.tif", arrays[1][:, ::2, ::2], TRANSFORM * Affine.scale(2), (True, True)
        )
        _, wanted = look(rgb, coarse)
        _, seen = look(rgb, mirrored)
        for (image, _), (north, _) in zip(seen, wanted, strict=True):
            np.testing.assert_allclose(image, north, atol=1e-3)

    def test_sar_without_georeference_is_stored_as_the_optical_raster(self, arrays, pair, look, tmp_path):
        north, wanted = look(*pair())
        rgb, _ = pair((False, True))
        sar = store(tmp_path / "plain.tif", arrays[1][:, ::-1].copy(), Affine.identity(), crs=None)
        _, seen = look(rgb, sar)
        assert_same_images(seen, wanted)

    def test_a_file_without_georeference_is_read_as_it_is(self, arrays, tmp_path):
        """Its identity transform only looks as if rows ran north."""
        path = store(tmp_path / "plain.png", arrays[0], Affine.identity(), crs=None, driver="PNG")
        with SceneReader(path, None, BandSpec(("red", "green", "blue")), gsd_m=0.5, north_up=True) as reader:
            image = reader.read().image
        np.testing.assert_array_equal(image, arrays[0])

    @pytest.mark.parametrize("angle_deg", [0.3, 30, 90, 135, 180, 270])
    @pytest.mark.parametrize("mirrored", [False, True])
    def test_however_it_is_turned_it_is_never_mirrored(self, pair, look, angle_deg, mirrored):
        placed = Affine.translation(LEFT, TOP) * Affine.rotation(angle_deg) * Affine.scale(0.5, -0.5)
        rgb, sar = pair(transform=placed)
        if mirrored:
            rgb, sar = pair((True, False), (True, False), transform=placed)
        result, seen = look(rgb, sar, window_px=1024)
        ((image, _),) = seen
        with rasterio.open(rgb) as file:
            plain = file.read().astype(np.float32)
        plain[:, (plain == 0).all(axis=0)] = np.nan
        # As without mirroring, or turned by half.
        kept = plain[:, :, ::-1] if mirrored else plain
        half = kept[:, ::-1, ::-1]
        assert any(np.array_equal(image[:3], candidate, equal_nan=True) for candidate in (kept, half))
        found = shapely.union_all([b.polygon for b in result.buildings])
        corners = shapely.Polygon([placed * c for c in ((0, 0), (WIDTH, 0), (WIDTH, HEIGHT), (0, HEIGHT))])
        assert found.difference(corners.buffer(1e-6)).area == 0
        turned = [note for note in result.notes if "degrees to the east" in note]
        assert len(turned) == (angle_deg not in (0.3, 180)), turned

    def test_layers_are_the_same_rows(self, both_weights, pair, tmp_path):
        frames = []
        for name, rasters in {"a": pair(), "b": pair((False, True), (False, True))}.items():
            predictor = Predictor(both_weights(), "cpu", build=False)
            predictor.model = Looker()
            out = tmp_path / f"{name}.gpkg"
            predict_to_file(predictor.weights, *rasters, out, predictor=predictor, **WINDOWS)
            frames.append(geopandas.read_file(out))
        assert frames[0].equals(frames[1]) and len(frames[0]) > 10


class TestExtents:
    COLUMNS, ROWS = slice(77, 230), slice(30, 160)

    @pytest.fixture
    def small_sar(self, arrays, tmp_path):
        transform = TRANSFORM * Affine.translation(self.COLUMNS.start, self.ROWS.start)
        return store(tmp_path / "small.tif", arrays[1][:, self.ROWS, self.COLUMNS].copy(), transform)

    def test_the_intersection_is_what_rasters_cut_to_it_give(self, arrays, pair, look, small_sar, tmp_path):
        transform = TRANSFORM * Affine.translation(self.COLUMNS.start, self.ROWS.start)
        cut = store(tmp_path / "cut.tif", arrays[0][:, self.ROWS, self.COLUMNS].copy(), transform, nodata=0)
        wanted, images = look(cut, small_sar, height_path=tmp_path / "cut-h.tif")
        rgb, _ = pair()
        result, seen = look(rgb, small_sar, height_path=tmp_path / "h.tif")
        assert_same_images(seen, images)
        assert facts(result) == facts(wanted) and result.count > 5
        with rasterio.open(tmp_path / "h.tif") as a, rasterio.open(tmp_path / "cut-h.tif") as b:
            assert a.transform == b.transform
            np.testing.assert_array_equal(a.read(), b.read())
        share = 153 * 130 / (HEIGHT * WIDTH)
        assert any(f"overlap only in part, {int(100 * share)} % of the latter" in n for n in result.notes)
        assert any(
            "where both optical and SAR rasters are" in n and 'extent="optical' in n for n in result.notes
        )

    def test_optical_is_all_of_it(self, pair, look, small_sar):
        rgb, _ = pair()
        everywhere, seen = look(rgb, small_sar, extent="optical")
        inside, _ = look(rgb, small_sar, extent="intersection")
        assert everywhere.count > inside.count
        assert any((np.isnan(image[3]) & np.isfinite(image[0])).any() for image, _ in seen)
        assert any("where SAR is missing: " in n and 'extent="intersection' in n for n in everywhere.notes)

    def test_the_default_is_what_the_network_copes_with(self, pair, look, small_sar):
        rgb, _ = pair()
        assert facts(look(rgb, small_sar)[0]) == facts(look(rgb, small_sar, extent="intersection")[0])
        copes, _ = look(rgb, small_sar, dropout=0.3)
        assert facts(copes) == facts(look(rgb, small_sar, extent="optical")[0])

    def test_nothing_is_said_and_done_where_both_cover_the_same(self, arrays, pair, look, tmp_path):
        rgb, sar = pair()
        wider = np.pad(arrays[1], ((0, 0), (7, 7), (9, 9)), mode="reflect")
        larger = store(tmp_path / "larger.tif", wider, TRANSFORM * Affine.translation(-9, -7))
        wanted, images = look(rgb, sar)
        for extent in ("intersection", "optical"):
            result, seen = look(rgb, larger, extent=extent)
            assert_same_images(seen, images)
            assert not any("extent" in note or "in part" in note for note in result.notes)

    @pytest.mark.parametrize("target_gsd_m", [None, 0.8])
    def test_sar_that_lies_askew(self, arrays, pair, both_weights, tmp_path, target_gsd_m):
        askew = TRANSFORM * Affine.translation(60, 10) * Affine.rotation(20) * Affine.scale(0.6)
        rgb, _ = pair()
        sar = store(tmp_path / "askew.tif", arrays[1], askew)
        bands = Predictor(both_weights(), "cpu", build=False).bands
        options = {"target_gsd_m": target_gsd_m}
        with (
            SceneReader(rgb, sar, bands, extent="intersection", **options) as common,
            SceneReader(rgb, sar, bands, **options) as whole,
        ):
            image, everything = common.read().image, whole.read()
            x0, y0 = ~common.transform * (whole.transform * (0, 0))
            assert common.width < whole.width and 0.1 < common.shared < 0.9
            parts = [common.read((x, 0, 31, common.height)).image for x in range(0, common.width - 31, 31)]
        np.testing.assert_allclose(np.concatenate(parts, axis=2), image[:, :, : 31 * len(parts)], atol=1e-4)
        missing = np.isnan(image).all(axis=0)
        assert 0.2 < missing.mean() < 0.6, "corners of the box that the strip leaves free"
        # What is there is what is read of all of it; what is not there has no SAR there either, but for an edge.
        if target_gsd_m is None:
            dx, dy = round(-x0), round(-y0)
            same = everything.image[:, dy : dy + image.shape[1], dx : dx + image.shape[2]]
            np.testing.assert_allclose(image[:, ~missing], same[:, ~missing], atol=1e-4)
            assert np.isfinite(same[3, missing]).mean() < 0.02
        assert np.isnan(image[3, ~missing]).mean() < 0.02

    def test_sar_in_another_crs(self, arrays, pair, both_weights, tmp_path):
        with rasterio.open(pair()[1]) as file:
            bounds = rasterio.warp.transform_bounds(file.crs, "EPSG:4326", *file.bounds)
        west, south, east, north = bounds
        half = Affine((east - west) / 2 / 100, 0, west, 0, -(north - south) / 100, north)
        degrees = np.full((1, 100, 100), -9, np.float32)
        reproject(arrays[1], degrees, src_transform=TRANSFORM, src_crs="EPSG:32631", dst_transform=half,
                  dst_crs="EPSG:4326", dst_nodata=-9)  # fmt: skip
        sar = store(tmp_path / "degrees.tif", degrees, half, crs="EPSG:4326")
        bands = Predictor(both_weights(), "cpu", build=False).bands
        with SceneReader(pair()[0], sar, bands, extent="intersection") as reader:
            assert reader.shared == pytest.approx(0.5, abs=0.03)
            assert reader.width == pytest.approx(WIDTH / 2, abs=5) and reader.height == pytest.approx(
                HEIGHT, abs=5
            )

    def test_a_sliver_too_thin_for_a_pixel_and_no_overlap_at_all(self, arrays, pair, look, tmp_path):
        rgb, _ = pair()
        for shift, message in ((WIDTH - 0.3, "no ground that all of them cover"), (WIDTH, "do not overlap")):
            sar = store(tmp_path / "far.tif", arrays[1], TRANSFORM * Affine.translation(shift, 0))
            with pytest.raises(InputError, match=message):
                look(rgb, sar, extent="intersection")

    def test_a_word_that_is_none(self, pair, look):
        with pytest.raises(InputError, match="`extent.*'union'"):
            look(*pair(), extent="union")

    def test_an_area_outside_of_the_intersection_is_refused(self, pair, look, small_sar):
        with pytest.raises(InputError, match="lies outside of the part of .*rgb.*tif that all rasters cover"):
            look(pair()[0], small_sar, aoi=shapely.box(LEFT + 1, TOP - 10, LEFT + 10, TOP - 1))

    def test_a_resumed_run_has_the_same_extent(self, pair, both_weights, small_sar):
        predictor = Predictor(both_weights(), "cpu", build=False)
        rasters = (pair()[0], small_sar)
        plans = [plan_of(predictor, *rasters, extent=extent) for extent in ("optical", "intersection", None)]
        prints = [plan.fingerprint(predictor) for plan in plans]
        assert prints[0] != prints[1] == prints[2]

    def test_a_mosaic_is_another_one_when_its_files_change(self, pair, both_weights, tmp_path):
        predictor = Predictor(both_weights(), "cpu", build=False)
        rgb, sar = pair()
        with rasterio.open(rgb) as file:
            rasterio.shutil.copy(file, tmp_path / "mosaic.vrt", driver="VRT")
        prints = []
        for _ in range(2):
            prints.append(plan_of(predictor, tmp_path / "mosaic.vrt", sar).fingerprint(predictor))
            rgb.touch()
        assert prints[0] != prints[1] and prints[0]["grid"] == prints[1]["grid"]
