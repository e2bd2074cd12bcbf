"""The command line of all sources: it starts at once, and imports the source that was asked for."""

import subprocess
import sys

from fusiondet.converters.prepare import SOURCES, StrictParser, prepare
from fusiondet.errors import InputError

import pytest

HELP = """
import sys
from fusiondet.converters.prepare import prepare
try:
    prepare({words!r})
finally:
    print(sorted({{"numpy", "rasterio", "geopandas"}} & {{*sys.modules}}))
"""


def started(*words):
    code = HELP.format(words=words)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_help_names_every_source_and_imports_none():
    done = started("--help")
    assert done.returncode == 0 and done.stdout.endswith("[]\n")
    for name, (_, text) in SOURCES.items():
        assert f"\n    {name}" in done.stdout and text.split()[0] in done.stdout


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_has_its_own_help(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        prepare([name, "--help"])
    assert "--out" in capsys.readouterr().out


@pytest.mark.parametrize(("words", "message"), [
    (["spacenet7", "--out", "a"], "invalid choice: 'spacenet7'"),
    ([], "SOURCE"),
    (["--out", "a"], "SOURCE"),
    (["tiles"], "--out"),
])  # fmt: skip
def test_wrong_words(words, message):
    with pytest.raises(InputError, match=message):
        prepare(words, parser=StrictParser)
