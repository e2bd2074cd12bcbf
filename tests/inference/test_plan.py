"""Decisions before a scene is predicted: overlap, area of interest, what is refused."""

from fusiondet.errors import InputError
from fusiondet.inference import predict_scene, predict_to_file
from tests.support.scene_cases import LEFT, TOP, TRANSFORM, WINDOWS, plan_of

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine

TURNED = Affine.translation(LEFT, TOP) * Affine.rotation(30) * Affine.scale(0.5, -0.5)


def test_a_sheared_raster_is_refused(finder, write_scene):
    path = write_scene(transform=TURNED * Affine.shear(8, 0))
    with pytest.raises(InputError, match="rows and columns meet at 8[0-9.]* degrees.*gdalwarp"):
        predict_scene(finder, path)


class TestWithoutCrs:
    BLOCK = {(100, 50, 140, 90): 255}

    def test_an_image_without_georeference_is_predicted_in_its_pixels(self, finder, write_scene, tmp_path):
        placed = predict_scene(finder, write_scene(self.BLOCK))
        bare = write_scene(self.BLOCK, name="bare.tif", transform=None, crs=None)
        result = predict_scene(finder, bare)
        assert result.crs is None and result.gsd_m == 0.5
        (there,), (here,) = placed.buildings, result.buildings
        on_map = shapely.transform(here.polygon, lambda xy: np.column_stack(TRANSFORM * xy.T))
        assert on_map.equals_exact(there.polygon, 1e-6) and here.height_m == there.height_m
        notes = " ".join(result.notes)
        assert "bare.tif" in notes and "0.5 m" in notes and "y down" in notes

    def test_its_layer_has_no_crs_and_its_areas_are_square_metres(self, finder, write_scene, tmp_path):
        bare = write_scene(self.BLOCK, name="bare.tif", transform=None, crs=None)
        paths = tmp_path / "a.gpkg", tmp_path / "h.tif"
        predict_to_file(finder.weights, bare, None, paths[0], predictor=finder, height_path=paths[1])
        frame = geopandas.read_file(paths[0])
        assert frame.crs is None and frame.area_m2.tolist() == pytest.approx((frame.area * 0.25).tolist())
        with rasterio.open(paths[1]) as raster:
            assert raster.crs is None and raster.transform.is_identity
            assert (raster.read(1)[55:85, 105:135] > 0).all()

    def test_the_pixel_size_can_be_stated(self, finder, write_scene):
        bare = write_scene(self.BLOCK, name="bare.tif", transform=None, crs=None)
        plan = plan_of(finder, bare, gsd_m=0.55)
        assert plan.unit_m == pytest.approx(0.55) and plan.pixel_m == (0.55, 0.55)

    def test_a_transform_without_crs_counts_in_metres(self, finder, write_scene):
        path = write_scene(self.BLOCK, crs=None)
        result = predict_scene(finder, path)
        assert result.crs is None and result.buildings[0].polygon.bounds[0] > LEFT
        assert plan_of(finder, path).unit_m == pytest.approx(1.0)

    @pytest.mark.parametrize("options", [{"name": "a.geojson"}, {"name": "a.gpkg", "report": "r.html"}])
    def test_outputs_that_need_a_crs_are_refused_first(self, finder, write_scene, tmp_path, options):
        bare = write_scene(self.BLOCK, name="bare.tif", transform=None, crs=None)
        out = tmp_path / options.pop("name")
        with pytest.raises(InputError, match="no CRS.*rio edit-info"):
            predict_to_file(
                finder.weights, bare, None, out, predictor=finder, write_report=print,
                **{k: tmp_path / v for k, v in options.items()},
            )  # fmt: skip


class TestOverlap:
    def test_it_follows_from_gsd_and_context_and_is_said(self, finder, write_scene):
        finder.cfg.MODEL.ROI_HEIGHT_HEAD.CONTEXT_M = 20.0
        path = write_scene(height=900, width=1100)
        plan = plan_of(finder, path)
        assert plan.overlap_px == 160  # (20 m + 60 m) / 0.5 m
        assert any("windows of 1024 px overlap by 160 px, 80 m" in note for note in plan.notes)
        assert plan_of(finder, path, window_px=200).overlap_px == 100
        assert plan_of(finder, path, overlap_px=7).overlap_px == 7

    def test_nothing_is_said_of_a_scene_of_one_window(self, finder, write_scene):
        assert plan_of(finder, write_scene()).notes == ()


class TestAreaOfInterest:
    AREA = shapely.box(LEFT + 60, TOP - 110, LEFT + 150, TOP - 20)

    def write(self, tmp_path, area=None, crs="EPSG:32631", to_crs="EPSG:4326", name="aoi.geojson"):
        frame = geopandas.GeoDataFrame(geometry=[area or self.AREA], crs=crs).to_crs(to_crs)
        frame.to_file(tmp_path / name)
        return tmp_path / name

    def test_buildings_with_their_middle_inside_are_those_of_the_whole_scene(
        self, finder, write_scene, city, tmp_path
    ):
        path = write_scene(city, height=900)
        whole = predict_scene(finder, path, **WINDOWS)
        seen = len(finder.model.batches)
        part = predict_scene(finder, path, aoi=self.write(tmp_path), **WINDOWS)
        inside = [b for b in whole.buildings if self.AREA.contains(b.polygon.representative_point())]
        assert 0 < len(part.buildings) == len(inside) < len(whole.buildings)
        assert {b.polygon.wkb for b in part.buildings} == {b.polygon.wkb for b in inside}
        assert any(not self.AREA.contains(b.polygon) for b in inside), "one is cut by the border, and whole"
        assert len(finder.model.batches) - seen < seen, "windows far outside are not predicted"

    def test_frames_and_geometries_do_as_well(self, finder, write_scene, city, tmp_path):
        path = write_scene(city)
        frame = geopandas.read_file(self.write(tmp_path))
        counts = [
            predict_scene(finder, path, aoi=aoi, **WINDOWS).count
            for aoi in (self.AREA, frame, frame.geometry, self.write(tmp_path))
        ]
        assert len(set(counts)) == 1 and counts[0]

    def test_what_is_outside_is_no_data_in_the_heights(self, finder, write_scene, city, tmp_path):
        small = shapely.box(LEFT + 5, TOP - 20, LEFT + 20, TOP - 5)
        predict_scene(
            finder, write_scene(city), aoi=small, height_path=tmp_path / "h.tif", window_px=100, overlap_px=36
        )
        with rasterio.open(tmp_path / "h.tif") as raster:
            heights_m = raster.read(1)
        assert np.isnan(heights_m[-1, -1]) and heights_m[15, 20] > 0

    def test_elsewhere_is_refused(self, finder, write_scene, tmp_path):
        far = self.write(tmp_path, shapely.box(0, 0, 10, 10), "EPSG:4326")
        with pytest.raises(InputError, match="aoi.geojson: lies outside of .*rgb.tif everywhere"):
            predict_scene(finder, write_scene(), aoi=far)
        lines = geopandas.GeoDataFrame(geometry=[shapely.LineString([(0, 0), (1, 1)])], crs="EPSG:4326")
        with pytest.raises(InputError, match="holds no polygon"):
            predict_scene(finder, write_scene(), aoi=lines)
        with pytest.raises(InputError, match="has no CRS"):
            predict_scene(finder, write_scene(), aoi=geopandas.GeoSeries([self.AREA]))
        with pytest.raises(InputError, match="nowhere.gpkg: no such file"):
            predict_scene(finder, write_scene(), aoi=tmp_path / "nowhere.gpkg")
