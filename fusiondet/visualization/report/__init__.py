"""A layer of buildings as one HTML page that needs no network: maps, a 3-D view, charts, and the truth beside them.

    page.py        write_report: everything together, whole or not at all
    of_layer.py    write_layer_report: of a layer in a file, over the image that it was predicted from
    reading.py     read_reported: layers of fusiondet, and any other one
    frame.py       the plane in metres that the page draws in, whatever the CRS of layer and picture
    shapes.py      outlines as arrays: vertices, rings and the triangles of the roofs
    picture.py     the part of a raster that lies under the buildings, read no finer than it is shown
    comparison.py  the layer against its truth
    charts.py      histograms, scatters and curves, as plain dicts that Plotly draws
    viewer.js      the views: turn, move, zoom, click; colours by height, score, interval or error
    page.css

Charts are Plotly's. The views are not: as a 3-D mesh of Plotly 50 000 buildings take a browser 1.2 GB and a page 41 MB.
Here they take 0.35 GB for both views and 22 MB, as walls are put up in the browser from the outlines, and a click reads
one pixel.
"""

from fusiondet.visualization.report.of_layer import write_layer_report
from fusiondet.visualization.report.page import write_report
from fusiondet.visualization.report.reading import read_reported

__all__ = ["read_reported", "write_layer_report", "write_report"]
