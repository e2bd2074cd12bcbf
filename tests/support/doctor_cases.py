"""Small data sets and samples for the tests of the data doctor, and ways to plant a fault into them."""

from dataclasses import replace

from fusiondet.buildings import Building, Tile
from fusiondet.doctor.findings import Finding
from fusiondet.doctor.split_source import read_splits
from fusiondet.io.coco import read_coco, write_coco

import numpy as np
from rasterio.transform import from_origin
from shapely.affinity import affine_transform
from shapely.geometry import box

UTM = "EPSG:32631"


def tile(name="a.tif", at=(600000.0, 5800000.0), buildings=(), size=100, gsd_m=0.5, crs=UTM, transform=None):
    if transform is None and at is not None:
        transform = tuple(from_origin(*at, gsd_m, gsd_m))[:6]
    return Tile(name, size, size, gsd_m, crs=crs, transform=transform, buildings=list(buildings))


def squares(n, height_m=None, side=8):
    places = [(x, y) for y in range(2, 92, 9) for x in range(2, 92, 9)]
    return [Building(box(x, y, x + side, y + side), height_m) for x, y in places[:n]]


def found(checker, root, *args) -> dict[str, Finding]:
    findings = checker(read_splits(root), *args)
    return {finding.name: finding for finding in (findings if isinstance(findings, list) else [findings])}


def looked(check, samples):
    """`check` after all `samples`."""
    for sample in samples:
        check.add(sample)
    return check


def by_name(findings) -> dict:
    return {finding.name: finding for finding in findings}


def with_bands(sample, order):
    """`sample` with its bands in another order: indexes of the image's channels."""
    return replace(sample, image=sample.image[list(order)])


def with_sar(sample, change):
    image = sample.image.copy()
    with np.errstate(invalid="ignore", divide="ignore"):
        image[3:] = change(image[3:])
    return replace(sample, image=image)


def with_outlines(sample, matrix):
    """`sample` with its outlines moved: matrix (a, b, d, e, x, y) of shapely, in units of the side for x and y = 1."""
    side = sample.tile.width
    matrix = (*matrix[:4], matrix[4] * side, matrix[5] * side)
    moved = [replace(b, polygon=affine_transform(b.polygon, matrix)) for b in sample.tile.buildings]
    return replace(sample, tile=replace(sample.tile, buildings=moved))


def edit(root, split, change) -> None:
    """Write the annotations of `split` with its tiles passed through `change`, a list to a list."""
    path = root / "annotations" / f"{split}.json"
    dataset = read_coco(path)
    dataset.tiles = change(dataset.tiles)
    write_coco(dataset, path)
