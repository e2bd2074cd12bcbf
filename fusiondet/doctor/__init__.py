"""The data doctor: what is wrong with a data set, before a training finds out. `tools/doctor.py data DIR`.

    source.py        finds and reads the annotation files of a folder
    annotations.py   counts, density, sizes, outlines: what the JSON alone says
    ground.py        CRS, GSD, orientation, ground shared between splits
    heights.py       heights or elevations, attributes and rasters
    samples.py       tiles whose pixels are read
    rasters.py       files, sizes, types, ranges, no data
    colours.py       are red, green and blue what they are called
    radar.py         is the SAR picture in dB, once
    registration.py  outlines against the optical picture: turned, mirrored, shifted
    echoes.py        the SAR picture against what a radar would see of the outlines
    outlines.py      points along edges, correlation over shifts
    copies.py        the same picture in two splits
    findings.py      verdict, what was found, what to do
    page.py          one HTML page with the worst tiles
    examination.py   all of it in one go

Checks give a `Finding` each; none of them changes the data.
"""

from fusiondet.doctor.examination import DEFAULT_SAMPLES, examine, report_data
from fusiondet.doctor.findings import VERDICTS, Case, Finding, text, worst_first

__all__ = ["DEFAULT_SAMPLES", "VERDICTS", "Case", "Finding", "examine", "report_data", "text", "worst_first"]
