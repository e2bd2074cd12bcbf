"""Instance-level buildings with heights from RGB + SAR: a Detectron2 extension.

Map of the package (three layers; nothing is imported here, so `import fusiondet` costs nothing):

    buildings, polygons/, export/, evaluation/         geo: records, outlines, GIS files, scores
    data/{bands,coco,imagery,converters,synthetic}     geo: tiles and footprints in, COCO out
    visualization, report/                             geo: pictures, the page of a layer
    config, compat, modeling/                          modeling: backbones, heads, weights
    data/{catalog,mapper,augmentations,sampler}        glue: disk to tensors
    engine/, evaluators, inference, benchmarking       glue: train, score, predict, time
    doctor/, diagnostics, cli, files, errors           checks of data and set-up, command line, files on disk

Geo never imports torch or detectron2, modeling never imports rasterio or shapely; tests/test_layering.py checks it.
"""

__version__ = "0.5.0"
