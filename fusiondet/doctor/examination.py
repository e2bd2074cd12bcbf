"""All checks of a data set in one go, and the reports of them."""

from dataclasses import replace
from pathlib import Path

from fusiondet.cli import progress, translate
from fusiondet.doctor.annotations import DEFAULT_MAX_DETECTIONS, check_annotations
from fusiondet.doctor.colours import ColourCheck
from fusiondet.doctor.copies import check_copies
from fusiondet.doctor.echoes import SAR_SHIFT, EchoCheck
from fusiondet.doctor.findings import Finding, text, worst_first
from fusiondet.doctor.height_values import check_heights
from fusiondet.doctor.html_page import write_page
from fusiondet.doctor.pixel_values import PixelCheck, check_files
from fusiondet.doctor.radar import SAR_SCALE, RadarCheck
from fusiondet.doctor.registration import LabelCheck, height_picture
from fusiondet.doctor.samples import chosen_tiles, read_samples
from fusiondet.doctor.shared_ground import check_ground
from fusiondet.doctor.split_source import Split, read_splits
from fusiondet.files import write_json
from fusiondet.locks import new_files

DEFAULT_SAMPLES = 64


def examine(
    path: Path, max_detections: int = DEFAULT_MAX_DETECTIONS, samples: int = DEFAULT_SAMPLES
) -> tuple[list[Split], list[Finding]]:
    """The splits of the data set `path`, and what is to be said about them.

    Annotations, headers of rasters and a small window of every tile are looked at; all pixels of `samples` tiles,
    evenly spread over the splits, one at a time.

    Args:
        path: folder with `annotations/*.json`, or one COCO file.
        max_detections: detections per image that a network may give.
        samples: tiles whose pixels are looked at.

    Raises:
        InputError: see `read_splits`.
    """
    splits = read_splits(path)
    readable = [split for split in splits if split.dataset is not None]
    findings = check_annotations(splits, max_detections)
    findings += check_heights(readable, max(samples // 4, 1))
    findings += check_ground(readable)
    findings.append(check_copies(readable))
    findings += check_files(readable)
    findings += _check_pixels(readable, samples)
    return splits, findings


def _check_pixels(splits: list[Split], samples: int) -> list[Finding]:
    pixels, colours, scale = PixelCheck(), ColourCheck(), RadarCheck()
    labels, shifts = LabelCheck(), EchoCheck()
    heights = LabelCheck("outlines against height rasters", height_picture)
    chosen = chosen_tiles(splits, samples)
    for sample in progress(read_samples(chosen), total=len(chosen), label="looking at pixels"):
        for check in (pixels, colours, scale, labels, heights, shifts):
            check.add(sample)
    findings = [*pixels.findings(splits, samples), *colours.findings(), *scale.findings(), *labels.findings()]
    # Said where something is off: most data sets have no height raster, and most of these lie where they should.
    off_heights = heights.shift_finding()
    findings += [off_heights] if off_heights.verdict in ("FAIL", "warn") else []
    if any(finding.name == SAR_SCALE and finding.verdict == "FAIL" for finding in findings):
        why = "Needs a SAR picture in dB: mend its scale first."
        return [*findings, Finding(SAR_SHIFT, "n/a", why)]
    return [*findings, *shifts.findings(labels)]


def report_data(
    path: Path, out: Path | None, html: Path | None, max_detections: int, samples: int, overwrite: bool
) -> int:
    """Examine `path`, print the findings, write `out` and `html` where given; 1 when a check failed, else 0.

    Raises:
        InputError: see `read_splits` and `fusiondet.locks.new_files`.
    """
    with new_files(out, html, overwrite=overwrite):
        splits, findings = examine(path, max_detections, samples)
        findings = [_with_options(finding) for finding in findings]
        print(text(findings))
        if out is not None:
            document = {"data": str(path), "findings": [f.to_dict() for f in worst_first(findings)]}
            write_json(document, out, indent=1)
        if html is not None:
            write_page(html, Path(path), splits, findings)
    return int(any(finding.verdict == "FAIL" for finding in findings))


def _with_options(finding: Finding) -> Finding:
    """Return `finding` with the options of the running tool in the place of parameters, see `fusiondet.cli`."""
    cases = tuple(replace(case, note=translate(case.note)) for case in finding.cases)
    return replace(finding, detail=translate(finding.detail), remedy=translate(finding.remedy), cases=cases)
