"""All checks of a data set in one go."""

from pathlib import Path

from fusiondet.doctor.annotations import DEFAULT_MAX_DETECTIONS, check_annotations
from fusiondet.doctor.findings import Finding, text, worst_first
from fusiondet.doctor.ground import check_ground
from fusiondet.doctor.heights import check_heights
from fusiondet.doctor.source import Split, read_splits
from fusiondet.files import require_new, write_json

DEFAULT_SAMPLES = 64


def examine(
    path: Path, max_detections: int = DEFAULT_MAX_DETECTIONS, samples: int = DEFAULT_SAMPLES
) -> tuple[list[Split], list[Finding]]:
    """The splits of the data set `path`, and what is to be said about them.

    Args:
        path: folder with `annotations/*.json`, or one COCO file.
        max_detections: detections per image that a network may give.
        samples: tiles whose pixels are looked at, evenly spread over the splits.

    Raises:
        InputError: see `read_splits`.
    """
    splits = read_splits(path)
    readable = [split for split in splits if split.dataset is not None]
    findings = check_annotations(splits, max_detections)
    findings += check_heights(readable, max(samples // 4, 1))
    findings += check_ground(readable)
    return splits, findings


def report_data(
    path: Path, out: Path | None, html: Path | None, max_detections: int, samples: int, overwrite: bool
) -> int:
    """Examine `path`, print the findings, write `out` and `html` where given; 1 when a check failed, else 0."""
    for file in (out, html):
        if file is not None:
            require_new(file, overwrite)
    splits, findings = examine(path, max_detections, samples)
    print(text(findings))
    if out is not None:
        write_json(
            {"data": str(path), "findings": [f.to_dict() for f in worst_first(findings)]}, out, indent=1
        )
    return int(any(finding.verdict == "FAIL" for finding in findings))
