"""Instance-level buildings with heights from RGB + SAR: a Detectron2 extension.

Imports run downwards in this list, and nothing is imported here, so `import fusiondet` costs nothing:

    projects/                               one folder per system of the papers that is not the detector
    analysis/, doctor/, visualization/      networks compared; what is wrong with data; figures and report pages
    inference/                              checkpoint + rasters -> buildings on the map
    engine/                                 training
    evaluation/                             scores
    data/                                   from files to tensors
    modeling/                               backbones, fusion, heads, architectures
    converters/, synthetic/                 other people's data, and the rendered city, as data sets
    jobs/                                   many pieces of work: executors, resumable store, hashes
    io/                                     all files that are read or written: rasters, vectors, COCO, layers
    geometry/                               pure functions on outlines, masks and heights
    buildings                               the record that all parts share
    config, config_text, config_ranges, config_loading     config keys; YAML and old names; ranges; checks
    plugins, cli, files, compat, errors     how projects are found; what tools share; files on disk

io and geometry never import torch or detectron2, modeling never imports rasterio or shapely; tests/test_layering.py
checks both, and the order above.
"""

__version__ = "0.6.0"
