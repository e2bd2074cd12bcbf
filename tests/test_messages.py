"""Messages of the library name parameters; each tool's users read its options."""

import argparse
import ast
import json
import re
from pathlib import Path

from fusiondet import cli
from fusiondet.converters.prepare import prepare, source_options, sources_by_name

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLAG = re.compile(r"(?<![\w:-])--(?:[a-z]|$)")
# Commands of other programs, which messages may give with their options.
COMMANDS = ("`rio ", "`gdal_calc.py ", "`pip install ", "gdal_translate ")
# Strings that are the arguments of a command, or of the code that deals with options.
ARGUMENTS = {
    "analysis/ablation/__init__.py": {"--out", "--overwrite"},
    "analysis/ablation/runs.py": {"--config-file", "--resume"},
    "cli.py": {"--"},
}
# Code of command lines: definitions of options, and texts of their help.
COMMAND_LINE = {"add_argument", "add_parser", "ArgumentParser"}
HELP = {"_OPTIONS", "_EPILOG"}
FAMILIES = sorted({path.parent for path in (ROOT / "fusiondet").rglob("*.py") if "tests" not in path.parts})


def strings_with_flags(path: Path) -> list[tuple[int, str]]:
    """(line, text) of strings with an option in them, without docstrings and the definitions of options."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    left_out = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            left_out.add(id(node.value))
        function = getattr(node, "func", None)
        called = "add_argument" if getattr(function, "id", None) == "add" else getattr(function, "attr", None)
        targets = {getattr(t, "id", getattr(t, "attr", None)) for t in getattr(node, "targets", ())}
        if called in COMMAND_LINE or targets & (HELP | {"description", "epilog"}):
            left_out |= {id(part) for part in ast.walk(node)}
    return [
        (node.lineno, node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in left_out
        if FLAG.search(node.value)
    ]


@pytest.mark.parametrize("folder", FAMILIES, ids=lambda folder: str(folder.relative_to(ROOT)))
def test_no_message_of_the_library_names_an_option(folder):
    found = []
    for path in sorted(folder.glob("*.py")):
        name = str(path.relative_to(ROOT / "fusiondet"))
        for line, text in strings_with_flags(path):
            if text not in ARGUMENTS.get(name, ()) and not any(command in text for command in COMMANDS):
                found.append(f"{name}:{line}: {text}")
    assert not found, "name the parameter in backticks, see fusiondet.cli:\n" + "\n".join(found)


def test_the_search_for_options_finds_them():
    text = (
        'def f(n):\n    "Doc --x."\n    parser.add_argument("--y")\n    raise E(f"see --{n}, or " "--z it")\n'
    )
    path = Path(__file__)
    assert strings_with_flags(path), "those of this file"
    tree = ast.parse(text)
    texts = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and FLAG.search(str(n.value))]
    assert {"see --", ", or --z it", "Doc --x.", "--y"} == {*texts}


def parsers(load_tool) -> dict[str, argparse.ArgumentParser]:
    """Tool and source -> its parser, as it is when its arguments are parsed."""
    found = {}

    class Stop(Exception):
        pass

    def remember(parser, *args, **options):
        found[current] = parser
        raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "parse", remember)
        for current in (
            "ablate",
            "analyze_modalities",
            "benchmark",
            "demo",
            "doctor",
            "evaluate",
            "predict_scene",
            "train_net",
            "visualize",
        ):
            tool = load_tool(current)
            if hasattr(tool, "parse"):
                patch.setattr(tool, "parse", remember)
            with pytest.raises(Stop):
                tool.main()
        for current in sources_by_name():
            with pytest.raises(Stop):
                prepare([current])
    return found


def test_each_option_of_each_tool_is_found_by_its_parameter(load_tool, monkeypatch):
    monkeypatch.setattr("sys.argv", ["tool"])
    count = 0
    for tool, parser in parsers(load_tool).items():
        subparsers = next((a for a in parser._actions if isinstance(a, argparse._SubParsersAction)), None)
        for command in [None, *(subparsers.choices if subparsers else ())]:
            args = argparse.Namespace(**({subparsers.dest: command} if command else {}))
            options = cli.options_of(parser, args)
            monkeypatch.setattr(cli, "_tool", cli._Tool(options))
            chosen = subparsers.choices[command] if command else parser
            for action in chosen._actions:
                if not action.option_strings:
                    continue
                translated = cli.translate(f"see `{action.dest}`.")
                flags = [s for a in chosen._actions if a.dest == action.dest for s in a.option_strings]
                assert translated in {f"see {flag}." for flag in flags}, (tool, command, action.dest)
                count += 1
            assert cli.translate("see `no_such_option`.") == "see `no_such_option`."
    assert count > 250


def refusal(main, capsys) -> str:
    """The line that a tool ends with for bad input."""
    with pytest.raises(SystemExit) as exit_:
        cli.run(main)
    assert exit_.value.code == 2
    return capsys.readouterr().err


CITY = "synthetic --out {there} --split train=1"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (CITY, r"{there}: already exists.*--overwrite to"),
        (f"{CITY} --overwrite --looks 1 --height-seed 1 --footprints a.json", "--height-seed draws.*--footprints has"),
        (f"{CITY} --incidence 50 90", "--incidence 90.0: expected 10 to 75 degrees"),
        (f"{CITY} --incidence 60 50", "--incidence 60.0 50.0: expected LOW <= HIGH"),
        (f"{CITY} --sar-shift-px 3 1", "--sar-shift-px 3.0 1.0: expected"),
        (f"{CITY} --view-azimuth 1 2", "--view-azimuth and --outline roof .*give --off-nadir"),
        ("synthetic --out {new} --split train", "--split train: expected NAME=TILES"),
        ("tiles --out {new} --footprints a.gpkg", "pass --rgb, --sar or both"),
        ("tiles --out {new} --footprints a.gpkg --sar a.tif", "--sar needs --sar-names .*--sar-scale"),
        ("tiles --out {new} --footprints a.gpkg --rgb a.tif --tile-size 8", "--tile-size 8: expected 32"),
        ("tiles --out {new} --footprints a.gpkg --rgb a.tif --footprints-crs x", "--footprints-crs x is not a CRS"),
        ("tiles --out {new} --footprints a.gpkg --rgb a.tif --dsm a.tif", "--ndsm, or from --dsm and --dtm together"),
        ("tiles --out {new} --footprints a.gpkg --rgb a.tif --filter apart=drop", "give --image-year"),
        ("spacenet --out {new} --images a.tif", "pass --labels, --csv or both"),
        ("spacenet --out {new} --images nothing --csv a.csv", "--images nothing: no such file"),
        ("spacenet --out {new} --images a.tif --csv a.csv --min-area-m2 -1", "--min-area-m2 -1.0: expected 0"),
        ("spacenet6 --out {new} --root nowhere", "--root nowhere: no such folder"),
        ("spacenet6 --out {new} --root nowhere --ground 5000", "--ground 5000: expected metres"),
        ("dfc2023 --out {new} --root nowhere", "--root nowhere: is no folder"),
        ("dfc2023 --out {new} --root {there} --holdout-city a --split b=1", "--holdout-city and --split both"),
        ("masks --out {new} --images a --masks b --gsd 0", "--gsd 0: expected 0.01 to 1000"),
        ("masks --out {new} --images a --masks b", "--images a: no such file"),
        ("classes --out {new} --images a --labels b --class tree", "--class tree: expected NAME=CODE"),
        ("classes --out {new} --images a --labels b --class a=1 b=2 --ignore x", "--ignore x: expected a code"),
        ("classes --out {new} --images a --labels b --class a=0 b=1 --gsd 0", "--gsd 0: expected 0.01"),
    ],
)  # fmt: skip
def test_a_refused_conversion_names_its_options(words, expected, load_tool, monkeypatch, capsys, tmp_path):
    there, new = tmp_path / "there", tmp_path / "new"
    (there / "annotations").mkdir(parents=True)
    (there / "file").touch()
    monkeypatch.setattr("sys.argv", ["prepare_dataset.py", *words.format(there=there, new=new).split()])
    error = refusal(load_tool("prepare_dataset").main, capsys)
    assert re.search(expected.format(there=there), error) and "`" not in error, error


@pytest.mark.parametrize(
    ("tool", "words", "expected"),
    [
        ("evaluate", "instances --annotations a --predictions b --out {file}", "file: already exists.*--overwrite to"),
        ("evaluate", "dfc2023 --annotations {truth} --predictions a", "with --heights, e.g. --heights val/height"),
        ("visualize", "dataset --annotations a --out {file}.png", "file.png: already exists.*--overwrite to"),
        ("doctor", "data a --out {file}", "file: already exists.*--overwrite to"),
        ("benchmark", "scene --out {file}", "file: already exists.*--overwrite to"),
        ("analyze_modalities", "--weights a --dataset b --out {there}", "--overwrite to"),
        ("ablate", "{root}/configs/ablation/fusion.yaml --out {there} --jobs 0", "--jobs 0: expected at least 1"),
        ("train_net", "--eval-only", "--config-file is missing"),
        ("train_net", "--config-file {root}/configs/synthetic/fusion_r18_small.yaml --eval-only", "--eval-only needs"),
        ("train_net", "--config-file {root}/configs/synthetic/fusion_r18_small.yaml MODEL.FUSION.DISABLED sar",
         "is for --eval-only"),
        ("predict_scene", "--weights {checkpoint} --rgb a.tif", "--out .*--height-raster .*--class-raster"),
        ("predict_scene", "--weights {checkpoint} --rgb a.tif --out {file}.gpkg", "file.gpkg: already.*--overwrite to"),
        ("predict_scene", "--weights {checkpoint} --rgb a.tif --out {new} --workers 2 --scheduler b",
         "--workers .*--scheduler .*pass one"),
        ("predict_scene", "--weights {checkpoint} --rgb a.tif --out {new} --max-overlap 3", "--max-overlap is 3.0"),
        ("predict_scene", "--weights {checkpoint} --rgb a.tif --height-raster h.tif --style",
         "--dtm, --report and --style .*--out"),
        ("predict_scene", "--weights {checkpoint} --out {new}", "Pass --rgb, and --sar"),
    ],
)  # fmt: skip
def test_a_refused_tool_names_its_options(tool, words, expected, load_tool, monkeypatch, capsys, tmp_path):
    there = tmp_path / "there"
    there.mkdir()
    for name in ("file", "file.png", "file.gpkg", "there/utilization.json", "there/ablation.json"):
        (tmp_path / name).write_text("{}")
    image = {"id": 1, "file_name": "a.tif", "width": 4, "height": 4}
    truth = {"images": [image], "annotations": [], "categories": [{"id": 1, "name": "building"}]}
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    places = {"there": there, "file": tmp_path / "file", "truth": tmp_path / "truth.json", "root": ROOT}
    places |= {"new": tmp_path / "new.gpkg", "checkpoint": ROOT / "tests/support/version_0_5/early_r50.pth"}
    monkeypatch.setattr("sys.argv", [tool, *words.format(**places).split()])
    error = refusal(load_tool(tool).main, capsys)
    assert re.search(expected, error) and "`" not in error, error


@pytest.mark.parametrize(
    "text",
    [
        "Make the data again with `ndsm`, with `dsm` and `dtm`, or with `height_field`.",
        'add `sar_scale="db"`, `nodata=0`, `clouds=SHARE`',
    ],
)
def test_options_of_conversions_are_known_to_tools_that_read_the_data(text, monkeypatch):
    monkeypatch.setattr(cli, "_tool", cli._Tool({}, source_options))
    assert "`" not in cli.translate(text)
    assert re.findall(r"--[a-z-]+", cli.translate(text)) == [
        "--" + name.replace("_", "-") for name in re.findall(r"`(\w+)", text)
    ]
