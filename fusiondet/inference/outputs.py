"""Refuse outputs of a scene that cannot be written, before anything is computed."""

from collections.abc import Iterable
from pathlib import Path

from fusiondet.errors import InputError
from fusiondet.files import require_new
from fusiondet.inference import checks
from fusiondet.inference.options import SceneOptions
from fusiondet.inference.predictor import Predictor
from fusiondet.io.crs import GEOREFERENCE, raster_crs_text
from fusiondet.io.height_rasters import check_height_raster
from fusiondet.io.layers import check_output, layer_crs
from fusiondet.io.qgis_style import check_style
from fusiondet.io.scene_reader import SceneRasters


def check_outputs(out: Path | None, options: SceneOptions, weights: Path, images: Iterable[Path]) -> None:
    """Refuse outputs that are taken, that do not go together, or that are needed as something else.

    Args:
        out: layer of buildings, or None.
        images: rasters to predict from.

    Raises:
        InputError: names the output and what is wrong with it.
    """
    outputs = {
        "out": out,
        "height_path": options.height_path,
        "class_path": options.class_path,
        "report": options.report,
    }
    if out is None and options.height_path is None and options.class_path is None:
        raise InputError(
            "nothing to write. Pass `out` for buildings, `height_path` for heights, or both; `class_path` for the "
            "classes, or the footprints, of a network that predicts them for each pixel."
        )
    if options.class_path is not None:
        check_height_raster(options.class_path, options.overwrite, "classes")
    if out is not None:
        check_output(out, options.overwrite)
    if options.height_path is not None:
        check_height_raster(options.height_path, options.overwrite)
    if options.report is not None:
        require_new(options.report, options.overwrite)

    read = [p for p in (weights, options.dtm, options.aoi) if isinstance(p, str | Path)]
    taken = {Path(p).resolve(): "is an image to predict from" for p in images if Path(p).exists()}
    taken |= {Path(p).resolve(): "is read to predict" for p in read if Path(p).exists()}
    for name, path in outputs.items():
        if path is None:
            continue
        place = Path(path).resolve()
        if place in taken:
            raise InputError(f"{path}: {taken[place]}, and not replaced. Choose another name for `{name}`.")
        taken[place] = f"is what `{name}` writes"

    if out is None and (options.dtm is not None or options.report is not None or options.style):
        raise InputError("`dtm`, `report` and `style` are about the buildings of `out`, which is missing.")
    if options.style:
        check_style(out)
    if options.height_source and options.height_path is None:
        raise InputError("`height_source` names what is written to `height_path`, which is missing.")
    if options.class_path is not None and options.height_path is not None:
        raise InputError("`class_path` and `height_path`: write one at a time.")


def check_layer_crs(out: Path | None, options: SceneOptions, rasters: SceneRasters) -> None:
    """Refuse rasters whose CRS, or lack of one, is nothing for the format of `out` or for a report.

    Raises:
        InputError: a raster cannot be opened; `out` cannot be in the CRS of the first one; it has none, and `out` or
            the report need one.
    """
    sources = rasters.sources
    if sources and sources[0].crs is None:
        if options.report is not None:
            raise InputError(
                f"{sources[0].name}: has no CRS, and the page of `report` is a map. Leave it out, or georeference the "
                f"image: {GEOREFERENCE}"
            )
        if out is not None:
            layer_crs(None, Path(out), plane=True)
    if out is not None:
        crs = raster_crs_text(sources[0].crs) if sources else None
        check_output(out, options.overwrite, crs, elevations=options.dtm is not None)


def raster_sources(predictor: Predictor, options: SceneOptions) -> list[str]:
    """Return what of each window is written to a raster of heights or of classes; nothing where none is wanted.

    Raises:
        InputError: the network does not predict it.
    """
    if options.class_path is not None:
        checks.check_tells_classes(predictor)
        return list(checks.CLASS_SOURCES)
    if options.height_path is not None:
        return checks.wanted_sources(predictor, options.height_source)
    return []


def check_network(predictor: Predictor, out: Path | None) -> None:
    """Refuse a network that finds buildings without a layer for them, and a layer for one that finds none."""
    weights = predictor.weights
    if out is None and predictor.has_instances:
        raise InputError(f"{weights}: finds buildings. Pass `out` for them, with or without `height_path`.")
    if out is not None and not predictor.has_instances:
        says = "heights or classes: it can be trained on and scored, but has nothing to write."
        if predictor.height_sources:
            says = "only heights per pixel. Pass `height_path` instead of `out`."
        elif predictor.class_names:
            names = ", ".join(predictor.class_names)
            says = f"only classes per pixel ({names}). Pass `class_path` instead of `out`."
        raise InputError(f"{weights}: finds no buildings, {says}")
