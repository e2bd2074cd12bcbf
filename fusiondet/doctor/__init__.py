"""Checks of a data set before a training (`tools/doctor.py data DIR`), and of the environment (`tools/doctor.py`).

    split_source.py   finds and reads the annotation files of a folder
    annotations.py    counts, density, sizes, outlines: everything the JSON alone shows
    shared_ground.py  CRS, GSD, orientation, ground shared between splits
    height_values.py  heights or elevations, attributes and rasters
    samples.py        tiles whose pixels are read
    pixel_values.py   files, sizes, types, ranges, no data
    colours.py        order of red, green and blue
    radar.py          SAR values in dB, converted once
    registration.py   outlines against the optical image: turned, mirrored, shifted
    echoes.py         the SAR image against what a radar would see of the outlines
    edges.py          points along edges, correlation over shifts
    copies.py         the same image in two splits
    findings.py       the result of a check: verdict, detail, remedy
    html_page.py      one HTML page with the worst tiles
    examination.py    all checks of a data set in one call
    environment.py    versions, device, small real operations

Each check returns a `Finding`; none of them changes the data. Nothing is imported here: the check of the
environment has to run where numpy, rasterio or torch is missing.
"""
