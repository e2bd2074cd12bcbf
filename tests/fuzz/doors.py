"""The five doors: for each, tools with sound arguments and a change of what comes in by it.

An attempt edits its own copy of the material and returns the words of the tool to run.
"""

import contextlib
import io
import os
import random
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from fusiondet import cli
from tests.fuzz import rasters, vectors, weights
from tests.fuzz.mutations import NASTY_WORDS, change_bytes, change_json, change_text

_EVALUATE = "evaluate instances --annotations ds/annotations/val.json --predictions predictions.json"
_TILES = (
    "prepare_dataset tiles --out out --tile-size 64 --footprints layers/houses.gpkg --height-field height"
)
_RGB_SAR = "--rgb scene/rgb.tif --sar scene/sar.tif --sar-names HH --sar-scale db"
_PREDICT = "predict_scene --weights net/model.pth --device cpu --window 128"
# Sound commands; those that write do so to out*.
COMMANDS = {
    "instances": f"{_EVALUATE} --metrics coco,height,joint,dense,spacenet --out out.json",
    "compare": f"{_EVALUATE} --compare predictions.json --draws 20",
    "dfc2023": "evaluate dfc2023 --annotations contest/ref/buildings_only_val.json --heights contest/ref/height "
    "--submission contest/submission.zip",
    "dfc2023 predictions": "evaluate dfc2023 --annotations contest/ref/buildings_only_val.json --heights "
    "contest/ref/height --predictions contest/res/seg_results.json --write-submission out.zip",
    "doctor": "doctor data ds --samples 4 --out out.json --html out.html",
    "dataset": "visualize dataset --annotations ds/annotations/val.json --tiles 2 --out out.png",
    "predictions": "visualize predictions --annotations ds/annotations/val.json --predictions predictions.json "
    "--out out",
    "delta1": "visualize delta1 --annotations ds/annotations/val.json --predictions predictions.json --out out.png",
    "crowdai": "prepare_dataset masks --images masks/images/a.png --masks masks/coco.json --gsd 0.3 --out out",
    "vectors": "evaluate vectors --truth layers/houses.gpkg --truth-height height --predictions layers/houses.geojson "
    "--prediction-height height --prediction-ground ground --out out.json",
    "report": "visualize report --buildings layers/houses.gpkg --height height --truth layers/houses.geojson "
    "--truth-height height --image scene/rgb.tif --out out.html",
    "tiles": f"{_TILES} {_RGB_SAR}",
    "tiles cut": f"{_TILES} {_RGB_SAR} --cut --ndsm scene/ndsm.tif --ground-field ground",
    "tiles dsm": f"{_TILES} {_RGB_SAR} --dsm scene/dsm.tif --dtm scene/dtm.tif --gsd 0.6",
    "tiles split": f"{_TILES} --rgb scene/rgb.tif --split train=50 val=50 --block-m 16 --tile-size 32",
    "masks": "prepare_dataset masks --images masks/images --masks masks/gt --gsd 0.3 --out out",
    "classes": "prepare_dataset classes --images classes/images --labels classes/labels --class a=0 b=1 c=2 --out out",
    "spacenet": "prepare_dataset spacenet --images rio/3band --labels rio/geoJson --out out",
    "spacenet table": "prepare_dataset spacenet --images rio/3band --csv rio/table.csv --out out",
    "synthetic": "prepare_dataset synthetic --out out --size 32 --split train=1 --workers 1 "
    "--footprints layers/houses.city.json",
    "predict": f"{_PREDICT} --rgb scene/rgb.tif --sar scene/sar.tif --sar-scale db --out out.gpkg",
    "predict all": f"{_PREDICT} --rgb scene/rgb.tif --sar scene/sar.tif --sar-scale db --out out.city.json "
    "--height-raster out.tif --dtm scene/dtm.tif --aoi layers/area.geojson --regularize 1",
    "predict scenes": f"{_PREDICT} --scenes scene/scenes.csv --sar-scale db --out out_{{name}}.geojson",
    "train": "train_net --config-file train.yaml",
    "eval only": "train_net --config-file train.yaml --eval-only MODEL.WEIGHTS net/model.pth",
    "fine-tune": "train_net --config-file train.yaml MODEL.WEIGHTS net/model.pth",
    "modalities": "analyze_modalities --weights net/model.pth --dataset ds/annotations/val.json --device cpu --out out "
    "--draws 10",
    "ablate": "ablate ablation.yaml --out out --dry-run",
}
# Files that come in by a door: command -> those of them that it reads.
JSON = {
    "instances": ("ds/annotations/val.json", "predictions.json"),
    "compare": ("ds/annotations/val.json", "predictions.json"),
    "dfc2023": ("contest/ref/buildings_only_val.json", "contest/submission.zip"),
    "dfc2023 predictions": ("contest/ref/buildings_only_val.json", "contest/res/seg_results.json"),
    "doctor": ("ds/annotations/val.json", "ds/annotations/train.json"),
    "dataset": ("ds/annotations/val.json",),
    "predictions": ("ds/annotations/val.json", "predictions.json"),
    "delta1": ("ds/annotations/val.json", "predictions.json"),
    "crowdai": ("masks/coco.json",),
    "eval only": ("ds/annotations/val.json",),
}
VECTORS = {
    "vectors": ("layers/houses.gpkg", "layers/houses.geojson"),
    "report": ("layers/houses.gpkg", "layers/houses.geojson"),
    "tiles": ("layers/houses.gpkg",),
    "tiles cut": ("layers/houses.gpkg",),
    "spacenet": ("rio/geoJson/013022223130_Public_img2_Geo.geojson",),
    "spacenet table": ("rio/table.csv",),
    "synthetic": ("layers/houses.city.json",),
    "predict all": ("layers/area.geojson",),
}
RASTERS = {
    "tiles": ("scene/rgb.tif", "scene/sar.tif"),
    "tiles cut": ("scene/rgb.tif", "scene/sar.tif", "scene/ndsm.tif"),
    "tiles dsm": ("scene/dsm.tif", "scene/dtm.tif", "scene/rgb.tif"),
    "masks": ("masks/images/a.png", "masks/gt/a.png"),
    "classes": ("classes/images/a.tif", "classes/labels/a.tif"),
    "doctor": ("ds/images/val_0_rgb.tif", "ds/images/val_0_sar.tif"),
    "dfc2023 predictions": ("contest/ref/height/P_0001.tif",),
    "report": ("scene/rgb.tif",),
    "predict": ("scene/rgb.tif", "scene/sar.tif"),
    "predict all": ("scene/dtm.tif", "scene/rgb.tif"),
}
_CHECKPOINTS = ("predict", "eval only", "fine-tune", "modalities")


def json_door(folder: Path, rng: random.Random) -> list[str]:
    """Annotations, predictions, submissions."""
    command, path = _target(JSON, rng)
    if path.endswith(".zip"):
        inside = folder / "contest" / "res"
        change_json(inside / "seg_results.json", rng)
        (folder / path).unlink()
        shutil.make_archive(str((folder / path).with_suffix("")), "zip", inside)
    elif rng.random() < 0.08:
        change_bytes(folder / path, rng)
    else:
        change_json(folder / path, rng)
    return _words(command)


def vector_door(folder: Path, rng: random.Random) -> list[str]:
    """Layers of footprints and areas, and their CRS."""
    command, path = _target(VECTORS, rng)
    words = _words(command)
    if path.endswith(".csv"):
        (change_bytes if rng.random() < 0.2 else change_text)(folder / path, rng)
        return words
    changed = vectors.change(folder, Path(path), rng, any_format=command not in ("spacenet", "synthetic"))
    return [str(changed) if word == path else word for word in words]


def raster_door(folder: Path, rng: random.Random) -> list[str]:
    """Images, masks and height rasters."""
    command, path = _target(RASTERS, rng)
    rasters.change(folder / path, rng)
    return _words(command)


def config_door(folder: Path, rng: random.Random) -> list[str]:
    """Config files, keys and checkpoints."""
    kind = rng.choice(("text", "keys", "keys", "checkpoint", "checkpoint", "ablation"))
    if kind == "text":
        (change_bytes if rng.random() < 0.1 else change_text)(folder / "train.yaml", rng)
        return _words("train")
    if kind == "keys":
        pairs = [word for _ in range(rng.choice((1, 1, 2))) for word in weights.nasty_pair(rng)]
        return [*_words(rng.choice(("train", "train", "eval only"))), *pairs]
    if kind == "ablation":
        change_text(folder / "ablation.yaml", rng)
        return _words("ablate")
    weights.change(folder / "net" / "model.pth", rng)
    return _words(rng.choice(_CHECKPOINTS))


def argument_door(folder: Path, rng: random.Random, options: dict[str, list[str]]) -> list[str]:
    """Command lines: options with odd values, odd paths.

    Args:
        options: command -> the options that its tool knows.
    """
    command = rng.choice(sorted(COMMANDS))
    words = _words(command)
    for _ in range(rng.choice((1, 1, 1, 2))):
        at = rng.randrange(1, len(words))
        match rng.randrange(6):
            case 0:
                words += [rng.choice(options[command]), rng.choice(NASTY_WORDS)]
            case 1:
                flag = rng.choice(options[command])
                words += [flag, *(rng.choice(NASTY_WORDS) for _ in range(rng.randrange(3)))]
            case 2:
                words[at] = rng.choice(NASTY_WORDS)
            case 3 | 4:
                paths = [i for i, word in enumerate(words) if re.search(r"^out|[/.]", word)]
                at = rng.choice(paths or [at])
                words[at] = _odd_path(folder, words[at], rng)
            case 5:
                del words[at]
        if len(words) < 2:
            break
    return words


def _odd_path(folder: Path, word: str, rng: random.Random) -> str:
    """Another path to what `word` names, or to something else."""
    path, suffix = folder / word, Path(word).suffix
    name = rng.choice(
        ("a!b", "a;b", "\udcff", "ä ö", "%d", "{name}", "n" * 250, "-x", "a'b", "a\nb", "*", "[a]", "#?")
    )
    odd = f"out {name}{suffix}" if word.startswith("out") else f"{name}{suffix}"
    match rng.randrange(8):
        case 0 | 1 | 2:
            if path.is_file():
                with contextlib.suppress(OSError):
                    shutil.copy(path, folder / odd)
            return odd
        case 3:
            os.symlink("loop", folder / "loop")
            return rng.choice(("loop", f"loop/a{suffix}"))
        case 4:
            os.symlink("nowhere", folder / f"dead{suffix}")
            return f"dead{suffix}"
        case 5:
            return rng.choice(
                ("/dev/null", "/dev/zero", "/dev/full", "/proc/self/mem", "", ".", "/", "ds", "n" * 5000)
            )
        case 6:
            return rng.choice(
                (f"{word}/x", f"missing/{word}", f"scene/rgb.tif/x{suffix}", f"../{word}", f"{word}/")
            )
        case _:
            files = sorted(p for p in folder.rglob("*") if p.is_file())
            return str(rng.choice(files).relative_to(folder))


def options_of_commands(mains: dict[str, Callable]) -> dict[str, list[str]]:
    """Command -> options that its tool describes."""
    found = {}
    for command in COMMANDS:
        words, text = _words(command), io.StringIO()
        first = [word for word in words[1:2] if not word.startswith("-")]
        sys.argv = [f"{words[0]}.py", *first, "--help"]
        with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
            cli.run(mains[words[0]])
        found[command] = sorted(
            {*re.findall(r"--[a-z][a-z0-9-]+", text.getvalue())} - {"--help", "--scheduler"}
        )
    return found


def _target(table: dict[str, tuple[str, ...]], rng: random.Random) -> tuple[str, str]:
    command = rng.choice(sorted(table))
    return command, rng.choice(table[command])


def _words(command: str) -> list[str]:
    return COMMANDS[command].split()
