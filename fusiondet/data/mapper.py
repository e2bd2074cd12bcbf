"""From a tile on disk to what the network takes: pixels, instances with heights, and facts about the acquisition."""

import fusiondet.compat  # noqa: F401  (before detectron2)
from fusiondet.buildings import Building, SensorGeometry
from fusiondet.data import augmentations as aug
from fusiondet.errors import InputError, unknown_name
from fusiondet.geometry.painting import polygons_to_masks
from fusiondet.io import labels
from fusiondet.io.bands import BandSpec
from fusiondet.io.coco import stored_height_m, stored_outlines
from fusiondet.io.pixel_classes import UNKNOWN, check_footprint_classes, read_classes
from fusiondet.io.tile_rasters import read_tile_image
from fusiondet.modeling.architecture import architecture_of

import numpy as np
import torch
from detectron2.config import configurable
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from shapely.geometry import MultiPolygon


class FusionDatasetMapper:
    """`mapper(record, counter)`: a dict of `fusiondet.data.catalog.records` -> the input dict of `FusionRCNN`.

    All that is random in it follows from (seed, counter). Tiles keep their own resolution: INPUT.MIN_SIZE_TRAIN and
    friends mean nothing here, because metres per pixel carry the height.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        optical_bands: list[str],
        sar_bands: list[str],
        mask_format: str = "bitmask",
        seed: int = 0,
        crop: tuple[str, tuple[float, float]] | None = None,
        scale_range: tuple[float, float] = (1.0, 1.0),
        dihedral: bool = False,
        quarter_turns: bool = True,
        sar_look_range_deg: tuple[float, float] | tuple = (),
        sun_range_deg: tuple[float, float] | tuple = (),
        optical_brightness: float = 0.0,
        optical_contrast: float = 0.0,
        sar_gain_db: float = 0.0,
        sar_speckle_looks: float = 0.0,
        min_instance_area_px: float = 0.0,
        height_labels: str = "",
        footprint_labels: bool = False,
        class_names: list[str] | tuple[str, ...] = (),
    ):
        """Args: `crop` is (INPUT.CROP.TYPE, SIZE); the others are the INPUT keys of these names (fusiondet/config.py).

        `height_labels`, "" for none, `footprint_labels`, and `class_names`, () for none, ask for labels per pixel, in
        training; the names give the classes their numbers.

        Raises:
            InputError: an unknown mask format, crop type or source of heights, or a scale range that is not
                0 < low <= high.
        """
        if mask_format not in ("bitmask", "polygon"):
            raise unknown_name("INPUT.MASK_FORMAT", mask_format, ("bitmask", "polygon"))
        if crop is not None and crop[0] not in aug.CROP_TYPES:
            raise unknown_name("INPUT.CROP.TYPE", crop[0], aug.CROP_TYPES)
        if not 0 < scale_range[0] <= scale_range[1]:
            raise InputError(
                f"INPUT.SCALE_RANGE is {list(scale_range)}, expected [low, high] with 0 < low <= high."
            )
        if height_labels:
            labels.choose_source(height_labels, None, None)
        self.is_train = is_train
        self.height_labels, self.footprint_labels = height_labels, footprint_labels
        self.class_names = tuple(class_names)
        self.optical_bands, self.sar_bands = tuple(optical_bands), tuple(sar_bands)
        self.mask_format, self.seed = mask_format, seed
        self.crop, self.scale_range, self.dihedral = crop, scale_range, dihedral
        self.quarter_turns = quarter_turns
        self.sar_look_range_deg, self.sun_range_deg = sar_look_range_deg, sun_range_deg
        self.optical_brightness, self.optical_contrast = optical_brightness, optical_contrast
        self.sar_gain_db, self.sar_speckle_looks = sar_gain_db, sar_speckle_looks
        self.min_instance_area_px = min_instance_area_px

    @classmethod
    def from_config(cls, cfg, is_train: bool = True) -> dict:
        """The only reader of config keys."""
        crop = (cfg.INPUT.CROP.TYPE, tuple(cfg.INPUT.CROP.SIZE)) if cfg.INPUT.CROP.ENABLED else None
        tasks = architecture_of(cfg).pixel_tasks(cfg)
        return {
            "is_train": is_train,
            "optical_bands": cfg.INPUT.OPTICAL_BANDS if "optical" in cfg.INPUT.MODALITIES else [],
            "sar_bands": cfg.INPUT.SAR_BANDS if "sar" in cfg.INPUT.MODALITIES else [],
            "mask_format": cfg.INPUT.MASK_FORMAT,
            "seed": max(cfg.SEED, 0),
            "crop": crop,
            "scale_range": tuple(cfg.INPUT.SCALE_RANGE),
            "dihedral": cfg.INPUT.DIHEDRAL,
            "quarter_turns": cfg.INPUT.QUARTER_TURNS,
            "sar_look_range_deg": tuple(cfg.INPUT.SAR_LOOK_AZIMUTH_RANGE_DEG),
            "sun_range_deg": tuple(cfg.INPUT.SUN_AZIMUTH_RANGE_DEG),
            "optical_brightness": cfg.INPUT.OPTICAL_BRIGHTNESS,
            "optical_contrast": cfg.INPUT.OPTICAL_CONTRAST,
            "sar_gain_db": cfg.INPUT.SAR_GAIN_DB,
            "sar_speckle_looks": cfg.INPUT.SAR_SPECKLE_LOOKS,
            "min_instance_area_px": cfg.INPUT.MIN_INSTANCE_AREA_PX,
            "height_labels": cfg.INPUT.HEIGHT_LABELS if "height" in tasks else "",
            "footprint_labels": "height" in tasks or "footprint" in tasks,
            "class_names": cfg.MODEL.DENSE_NET.CLASSES if "classes" in tasks else (),
        }

    def __call__(self, record: dict, counter: int = 0) -> dict:
        """Read, augment (in training) and pack one tile.

        Returns:
            image (C, H, W) float32 tensor with NaN = no data, height, width, image_id, file_name, gsd_m, sensor {name:
            degrees, NaN unknown}, instances: gt_boxes, gt_classes, gt_masks, gt_heights (metres, NaN unknown). In
            evaluation the instances are all of the record's, in order. In training also labels per pixel, those that
            were asked for, NaN where no band has data: building_height_m (H, W) float32 as in `fusiondet.io.labels`,
            footprint (H, W) float32, 1 in any annotated outline, however small, else 0, and classes (H, W) float32
            number of the class, NaN also where it is not labelled; of data without rasters of classes, footprints tell
            "building" from "background". Where the record says whether it is labelled, `labelled`; one that is not has
            no instances and no labels per pixel.

        Raises:
            InputError: a raster is missing, damaged, of another size than the annotations say, or lacks a band; the
                classes are others than those asked for, or see `fusiondet.io.pixel_classes.read_classes`.
        """
        rng = np.random.default_rng((self.seed, counter))
        labelled = record.get("labelled", True)
        tile = record["tile"]
        outlines = stored_outlines(tile) if labelled else []
        heights = [stored_height_m(building.height_m) for building in tile.buildings] if labelled else []
        heights_m = np.array([np.nan if height_m is None else height_m for height_m in heights], np.float32)

        sample = self._read(record, outlines, rng)
        if self.is_train:
            sample = self._photometry(self._geometry(sample, rng), rng)
        outlines, masks = sample.outlines_px, polygons_to_masks(sample.outlines_px, *sample.size)
        per_pixel = {}
        if self.is_train and labelled:
            per_pixel = self._labels(sample, masks, heights_m, record)
        if self.is_train:
            smallest_px = max(1, self.min_instance_area_px)
            keep = [i for i, mask in enumerate(masks) if np.count_nonzero(mask) >= smallest_px]
            if len(keep) < len(masks):
                outlines, masks, heights_m = [outlines[i] for i in keep], masks[keep], heights_m[keep]
        return {
            **{key: record[key] for key in ("image_id", "file_name", "sar_file_name")},
            **({"labelled": labelled} if "labelled" in record else {}),
            **per_pixel,
            "height": sample.size[0],
            "width": sample.size[1],
            "image": torch.from_numpy(np.ascontiguousarray(sample.image, dtype=np.float32)),
            "gsd_m": sample.gsd_m,
            "sensor": {
                k: float("nan") if v is None else float(v) for k, v in sample.sensor.to_dict().items()
            },
            "instances": self._instances(outlines, masks, heights_m, sample.size),
        }

    def _read(self, record: dict, outlines: list, rng) -> aug.Sample:
        """The sample of the record, or of a random window of it that a resize then brings to the size of the crop."""
        bands = BandSpec.select(record["bands"], self.optical_bands, self.sar_bands)
        height, width = record["height"], record["width"]
        window, target = None, None
        if self.is_train:
            window, target = self._draw_window(height, width, rng)
        rasters = record["optical_raster"], record["sar_raster"]
        image = read_tile_image(*rasters, bands, record["bands"], record["nodata"], window)
        if image.shape[1:] != ((window[3], window[2]) if window else (height, width)):
            raise InputError(
                f"{record['file_name']}: {image.shape[2]} x {image.shape[1]} px, but its annotations are for "
                f"{width} x {height} px. Convert the data again."
            )
        if self.is_train:
            outlines = aug.crop_outlines(outlines, *window)
        sensor = SensorGeometry.from_dict(record["sensor"])
        in_db = bands.sar_scale != "stretched_uint8"
        rasters = self._read_heights(record, window) | self._read_classes(record, window)
        sample = aug.Sample(image, outlines, record["gsd_m"], sensor, len(bands.optical), in_db, rasters)
        return sample if target is None else aug.resize(sample, *target)

    def _height_source(self, record: dict) -> str:
        names = record["building_height_file_name"], record["ndsm_file_name"]
        return labels.choose_source(self.height_labels, *names)

    def _read_heights(self, record: dict, window) -> dict[str, np.ndarray]:
        """{"heights": (h, w) metres of the window} where a raster of heights is wanted and there is one, else {}."""
        if not (self.is_train and self.height_labels and record.get("labelled", True)):
            return {}
        path = record.get(f"{self._height_source(record)}_file_name")
        if path is None:
            return {}
        shape = record["height"], record["width"]
        return {"heights": labels.read_heights(path, shape, record["transform"], record["crs"], window)}

    def _read_classes(self, record: dict, window) -> dict[str, np.ndarray]:
        """{"classes": (h, w) numbers of the window, NaN unknown} where rasters tell them and they are wanted, else {}.

        A tile without such a raster, of data that have some, is not labelled.
        """
        classes = record.get("classes")
        if not (self.is_train and self.class_names and classes and record.get("labelled", True)):
            return {}
        if record["class_raster"] is None:
            return {"classes": np.full((window[3], window[2]), np.nan, np.float32)}
        size = record["height"], record["width"]
        numbers = read_classes(record["class_raster"], classes.in_order_of(self.class_names), size, window)
        return {"classes": np.where(numbers == UNKNOWN, np.float32(np.nan), numbers.astype(np.float32))}

    def _labels(self, sample: aug.Sample, masks: np.ndarray, heights_m: np.ndarray, record: dict) -> dict:
        """Labels per pixel of a finished sample; (N, H, W) `masks` of all its outlines."""
        found = {}
        footprint = masks.any(axis=0)
        if self.height_labels:
            buildings = [
                Building(outline, None if np.isnan(height_m) else float(height_m))
                for outline, height_m in zip(sample.outlines_px, heights_m)
                if outline is not None
            ]
            found["building_height_m"] = labels.height_label(
                self._height_source(record), buildings, footprint, sample.rasters.get("heights")
            )
        if self.footprint_labels:
            found["footprint"] = footprint.astype(np.float32)
        if self.class_names:
            found["classes"] = self._class_label(sample, footprint)
        unseen = np.isnan(sample.image).all(axis=0)
        return {name: torch.from_numpy(np.where(unseen, np.float32(np.nan), v)) for name, v in found.items()}

    def _class_label(self, sample: aug.Sample, footprint: np.ndarray) -> np.ndarray:
        if "classes" in sample.rasters:
            return sample.rasters["classes"]
        check_footprint_classes(self.class_names)
        building, background = (self.class_names.index(name) for name in ("building", "background"))
        return np.where(footprint, building, background).astype(np.float32)

    def _draw_window(self, height: int, width: int, rng):
        """((x0, y0, width, height) to read, (height, width) to resize it to, None when that is the same)."""
        low, high = self.scale_range
        factor = float(np.exp(rng.uniform(np.log(low), np.log(high))))
        out_height, out_width = max(1, round(height * factor)), max(1, round(width * factor))
        if self.crop is not None:
            out_height, out_width = aug.crop_size(*self.crop, out_height, out_width, rng)
        window_height, window_width = (
            min(height, max(1, round(out_height / factor))),
            min(width, max(1, round(out_width / factor))),
        )
        y0 = int(rng.integers(0, height - window_height, endpoint=True))
        x0 = int(rng.integers(0, width - window_width, endpoint=True))
        same = (out_height, out_width) == (window_height, window_width)
        return (x0, y0, window_width, window_height), None if same else (out_height, out_width)

    def _geometry(self, sample: aug.Sample, rng) -> aug.Sample:
        if not self.dihedral:
            return sample
        choices = aug.allowed_dihedral(
            sample.sensor, self.sar_look_range_deg, self.sun_range_deg, self.quarter_turns
        )
        return aug.dihedral(sample, *choices[rng.integers(len(choices))])

    def _photometry(self, sample: aug.Sample, rng) -> aug.Sample:
        sample = aug.jitter_optical(sample, rng, self.optical_brightness, self.optical_contrast)
        return aug.jitter_sar(sample, rng, self.sar_gain_db, self.sar_speckle_looks)

    def _instances(
        self, outlines: list, masks: np.ndarray, heights_m: np.ndarray, size: tuple[int, int]
    ) -> Instances:
        instances = Instances(size)
        bounds = [(0.0, 0.0, 0.0, 0.0) if outline is None else outline.bounds for outline in outlines]
        instances.gt_boxes = Boxes(torch.tensor(bounds, dtype=torch.float32).reshape(-1, 4))
        instances.gt_classes = torch.zeros(len(outlines), dtype=torch.int64)
        rings = None if self.mask_format == "bitmask" else [_rings(outline) for outline in outlines]
        # Rings alone would fill courtyards, so a tile that has one is rasterised in either format.
        if rings is None or any(ring is None for ring in rings):
            instances.gt_masks = BitMasks(torch.from_numpy(masks))
        else:
            instances.gt_masks = PolygonMasks(rings)
        instances.gt_heights = torch.from_numpy(heights_m)
        return instances


def _rings(outline) -> list[np.ndarray] | None:
    """Flat outer rings, None when there are holes or nothing at all."""
    parts = [] if outline is None else outline.geoms if isinstance(outline, MultiPolygon) else [outline]
    if not parts or any(part.interiors for part in parts):
        return None
    return [np.asarray(part.exterior.coords)[:-1, :2].ravel() for part in parts]
