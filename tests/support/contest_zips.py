"""Submissions to Track 2 of DFC2023 as zips, scored and spoilt."""

import json
import zipfile
from pathlib import Path

from fusiondet.evaluation.dfc2023_scoring import (
    evaluate_dfc2023,
)
from fusiondet.evaluation.dfc2023_submission import (
    Findings,
    ZippedSubmission,
)


def zipped(folder: Path, path: Path, rename=lambda name: name) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            archive.write(file, rename(file.relative_to(folder).as_posix()))
    return path


def scored(truth, path: Path, strict: bool = False) -> tuple[dict, Findings]:
    findings = Findings(path.name, strict)
    with ZippedSubmission(path, findings) as submission:
        return evaluate_dfc2023(truth, submission), findings


def results_of(folder: Path) -> list[dict]:
    return json.loads((folder / "seg_results.json").read_text())


def record_changed(**changes):
    def change(folder):
        records = results_of(folder)
        records[0].update({key: value for key, value in changes.items() if value is not ...})
        for key in [key for key, value in changes.items() if value is ...]:
            del records[0][key]
        (folder / "seg_results.json").write_text(json.dumps(records))

    return change


POLYGON = [[2, 2, 9, 2, 9, 9, 2, 9]]
