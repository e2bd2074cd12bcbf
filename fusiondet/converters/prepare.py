"""Making a data set from the words of a command line, whatever its source: what tools/prepare_dataset.py does."""

import argparse
import functools
import importlib
import sys
from collections.abc import Sequence

from fusiondet import cli, plugins
from fusiondet.errors import InputError

# name -> module with add_arguments(parser) and main(args), and what it makes; projects have more.
SOURCES = {
    "synthetic": ("fusiondet.synthetic", "physically rendered city, exact outlines and heights"),
    "tiles": (
        "fusiondet.converters.tiles",
        "your own RGB (and SAR) rasters with footprints, heights where known",
    ),
    "spacenet6": (
        "fusiondet.converters.spacenet6",
        "SpaceNet 6, Rotterdam: RGB, SAR, buildings with heights",
    ),
    "spacenet": (
        "fusiondet.converters.spacenet",
        "SpaceNet 1, 2 and 4: tiles with GeoJSON or the CSV, no heights",
    ),
    "dfc2023": (
        "fusiondet.converters.dfc2023",
        "Data Fusion Contest 2023, Track 1 or 2: RGB, SAR, buildings, nDSM",
    ),
    "masks": (
        "fusiondet.converters.masks",
        "images with masks of buildings: Inria, WHU, Massachusetts; crowdAI's COCO",
    ),
    "classes": (
        "fusiondet.converters.class_rasters",
        "images with a class per pixel, in colours or codes",
    ),
}


def sources_by_name() -> dict[str, tuple[str, str]]:
    """Return name -> (module, what it makes) of all sources, those of projects last."""
    return {**SOURCES, **plugins.merged("converters")}


def _module(name: str):
    """Import the module of source `name`; InputError when a library that it needs is not installed."""
    return plugins.load("converters", name, "prepare_dataset.py") or importlib.import_module(SOURCES[name][0])


def prepare(
    words: Sequence[str] | None = None, description: str = "", parser: type = argparse.ArgumentParser
) -> None:
    """Make the data set that `words`, `SOURCE --out DIR ...`, describe; None takes the process's own arguments."""
    top = parser(description=description)
    sources = top.add_subparsers(dest="source", required=True, metavar="SOURCE")
    words = sys.argv[1:] if words is None else words
    # No option before it takes a value. The other sources are not imported, only to be left alone.
    chosen = next((word for word in words if not word.startswith("-")), None)
    for name, (_, text) in sources_by_name().items():
        source = sources.add_parser(name, help=text, description=text)
        if name == chosen:
            chosen_module = _module(name)
            chosen_module.add_arguments(source)
    with cli.own_options():
        args = cli.parse(top, words)
        chosen_module.main(args)


@functools.cache
def source_options() -> dict[str, cli.Option]:
    """Return parameter -> option of all sources: for tools whose messages ask to convert the data in another way."""
    options = {}
    for name in sources_by_name():
        parser = argparse.ArgumentParser()
        try:
            _module(name).add_arguments(parser)
        except InputError:  # of a project whose libraries are not installed
            continue
        options = cli.options_of(parser) | options
    return options


class StrictParser(argparse.ArgumentParser):
    """For words that stand in a file: raises InputError where a command line would end the process."""

    def error(self, message: str) -> None:
        """Wrong words: InputError."""
        raise InputError(message)
