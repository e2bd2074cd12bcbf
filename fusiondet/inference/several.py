"""Many scenes with one network: a table of rasters in, a layer for each out."""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fusiondet.errors import InputError
from fusiondet.inference.predictor import Predictor
from fusiondet.inference.scene import ScenePrediction, predict_to_file

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
    without a name is called as its first raster.

    Raises:
        InputError: no such file, other columns, a row without rasters, or a name twice or with a slash.
    """
    path = Path(path)
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
    score_threshold: float | str = "layer",
    device=None,
    resume: bool = False,
    skip_invalid: bool = False,
    height_path: str | Path | None = None,
    class_path: str | Path | None = None,
    report: str | Path | None = None,
    **options,
) -> list[str]:
    """`predict_to_file` for each scene, with one network.

    Args:
        out, height_path, class_path, report: names of files with "{name}" where the scene's name goes.
        on_done: called after each scene; with None for one whose outputs are there already, which `resume` takes as
            they are.
        skip_invalid: go on with the next scene where one cannot be used; and see `predict_scene`.
        options: see `predict_to_file`.

    Returns:
        Why scenes were left out, a sentence each.

    Raises:
        InputError: a name without "{name}"; or, unless `skip_invalid`, see `predict_to_file`, for the first scene.
    """
    paths = {"out": out, "height_path": height_path, "class_path": class_path, "report": report}
    named = dict(zip(("--out", "--height-raster", "--class-raster", "--report"), paths.values(), strict=True))
    for option, path in named.items():
        if path is not None and NAME not in str(path):
            raise InputError(
                f"{option} {path}: with several scenes it needs {NAME} where the name of each goes, e.g. "
                f"{Path(path).with_name(NAME + '-' + Path(path).name)}."
            )
    others = bool(options.get("workers") or options.get("scheduler"))
    predictor = Predictor(weights, device, score_threshold, build=not others)
    left_out = []
    for scene in scenes:
        files = {
            key: None if path is None else Path(str(path).replace(NAME, scene.name))
            for key, path in paths.items()
        }
        if resume and all(path.exists() for path in files.values() if path):
            on_done(scene, None)
            continue
        try:
            result = predict_to_file(
                weights,
                list(scene.rgb) or None,
                list(scene.sar) or None,
                **files,
                predictor=predictor,
                device=device,
                resume=resume,
                skip_invalid=skip_invalid,
                **options,
            )
        except InputError as error:
            if not skip_invalid:
                raise InputError(f"scene {scene.name}: {error}") from None
            left_out.append(f"scene {scene.name}: {error}")
        else:
            on_done(scene, result)
    return left_out
