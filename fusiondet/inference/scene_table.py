"""Many scenes with one network: a table of rasters in, a layer for each out."""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fusiondet.errors import InputError
from fusiondet.files import check_name
from fusiondet.inference.api import predict_to_file
from fusiondet.inference.options import SceneOptions
from fusiondet.inference.predictor import Predictor
from fusiondet.inference.run import ScenePrediction
from fusiondet.jobs.store import announced

NAME = "{name}"
_COLUMNS = ("rgb", "sar", "name")


@dataclass(frozen=True)
class SceneFiles:
    """A row of a table of scenes: its name, and the rasters of each modality, none or several."""

    name: str
    rgb: tuple[Path, ...]
    sar: tuple[Path, ...]


def read_scenes(path: Path) -> list[SceneFiles]:
    """The scenes of a CSV file with the columns rgb, sar and name, of which rgb or sar is needed.

    Paths are relative to the file's folder; several rasters that count as one image are separated by ";". A scene
    without a name is called as its first raster. Rows of empty cells are skipped.

    Raises:
        InputError: no such file, other columns, a row without rasters, or a name twice or with a slash.
    """
    path = Path(path)
    check_name(path)
    try:
        with open(path, encoding="utf-8-sig", newline="") as f:
            reader = csv.DictReader(f, skipinitialspace=True)
            columns, rows = reader.fieldnames or [], list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as a table of scenes ({error}).") from None
    if not {"rgb", "sar"} & set(columns) or set(columns) - set(_COLUMNS):
        raise InputError(
            f"{path}: its columns are {', '.join(map(str, columns)) or 'none'}; expected a first line of "
            f"{', '.join(_COLUMNS)}, with rgb or sar or both, then a line for each scene."
        )
    # Spreadsheets write rows of empty cells, too, which the reader of CSV does not skip as it does empty lines.
    rows = [row for row in rows if any("".join(cell or "").strip() for cell in row.values())]
    scenes = [_scene(path, row) for row in rows]
    names = [scene.name for scene in scenes]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(
            f"{path}: {len(twice)} names occur twice ({', '.join(twice[:5])}), so their results would replace each "
            "other. Give the scenes names of their own in a column name."
        )
    if not scenes:
        raise InputError(f"{path}: lists no scene.")
    return scenes


def _scene(path: Path, row: dict) -> SceneFiles:
    rgb, sar = (
        tuple(path.parent / part.strip() for part in (row.get(column) or "").split(";") if part.strip())
        for column in ("rgb", "sar")
    )
    if not rgb and not sar:
        raise InputError(f"{path}: a row names no raster: {dict(row)}.")
    name = (row.get("name") or "").strip() or (rgb or sar)[0].stem
    controls = any(ord(c) < 32 or ord(c) == 127 for c in name)
    if Path(name).name != name or name in (".", "..") or controls:
        raise InputError(f"{path}: {name!r} cannot be part of a file's name. Give that scene another one.")
    return SceneFiles(name, rgb, sar)


def predict_scenes(
    weights: Path,
    scenes: list[SceneFiles],
    out: str | Path | None,
    on_done: Callable[[SceneFiles, ScenePrediction | None], None],
    *,
    write_report: Callable[..., None] | None = None,
    **options,
) -> list[str]:
    """`predict_to_file` for each scene, with one network.

    Args:
        out: name of a file with "{name}" where the scene's name goes.
        on_done: called after each scene; with None for one whose outputs are there already, which `resume` takes as
            they are.
        write_report: see `predict_to_file`.
        options: see `SceneOptions`. `height_path`, `class_path` and `report` are names with "{name}", too; with
            `skip_invalid` scenes that cannot be used are left out, and the others are predicted.

    Returns:
        Why scenes were left out, a sentence each.

    Raises:
        InputError: a name without "{name}"; or, unless `skip_invalid`, see `predict_to_file`, for the first scene.
    """
    settled = SceneOptions.from_keywords(options)
    names = {
        "out": out,
        "height_path": settled.height_path,
        "class_path": settled.class_path,
        "report": settled.report,
    }
    for option, path in names.items():
        if path is not None and NAME not in str(path):
            raise InputError(
                f"`{option}` {path}: with several scenes it needs {NAME} where the name of each goes, e.g. "
                f"{Path(path).with_name(NAME + '-' + Path(path).name)}."
            )
    predictor = Predictor(weights, settled.device, settled.score_threshold, build=not settled.elsewhere)
    left_out = []
    for scene in scenes:
        paths = {
            option: None if path is None else Path(str(path).replace(NAME, scene.name))
            for option, path in names.items()
        }
        wanted = [path for path in paths.values() if path]
        # A run that was killed after its last output has still to tidy up.
        if settled.resume and all(path.exists() for path in wanted) and not announced(wanted[0]):
            on_done(scene, None)
            continue
        try:
            result = predict_to_file(
                weights,
                scene.rgb or None,
                scene.sar or None,
                predictor=predictor,
                write_report=write_report,
                **{**options, **paths},
            )
        except InputError as error:
            if not settled.skip_invalid:
                raise InputError(f"scene {scene.name}: {error}") from None
            left_out.append(f"scene {scene.name}: {error}")
        else:
            on_done(scene, result)
    return left_out
