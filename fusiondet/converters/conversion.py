"""From the tiles of a source to a data set on disk: in several processes, in constant memory, resumable.

A `Source` says where its tiles are, and makes one of them when asked; it knows the layout of one kind of data and
nothing else. `convert` does the rest: work is dealt out to processes, finished tiles are kept when a run is stopped and
not made again, splits are dealt out by ground, and the ground that two splits share is measured. What is wrong with
the data is counted and named, and stops a conversion only where that was asked for.

In memory there are the places of the tiles (about 2 KB each), never their labels or pixels.
"""

import contextlib
import dataclasses
import json
import os
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from fusiondet import __version__, cli
from fusiondet.buildings import Tile, map_to_pixel
from fusiondet.converters.reports import MAX_NAMED, UNUSABLE, Problems, Report, counted
from fusiondet.converters.shards import Shards, remove_own
from fusiondet.converters.source import Place, Source
from fusiondet.converters.splits import assign_blocks, clear_of, conflicts, leaked_area, parse_split
from fusiondet.errors import InputError
from fusiondet.files import read_json, require_new_dir, write_json
from fusiondet.io.coco import CocoWriter, Dataset, tile_from_records
from fusiondet.io.grids import metric_crs
from fusiondet.jobs.executors import WorkerError, check_workers
from fusiondet.jobs.hashing import file_state, sha256
from fusiondet.jobs.store import Store, clear_published

import numpy as np
import shapely

# Beside the annotations: what was asked for, and what happened.
RECORD_FILE = "conversion.json"
# Options that change nothing about the result.
NOT_IN_RECIPE = ("workers", "scheduler", "overwrite")
# Tiles with labels that `Source.finish` gets to see.
SAMPLE = 32


@dataclass(frozen=True)
class Options:
    """How to convert, whatever the source.

    Attributes:
        split: words "train=80"; None: all in "train". Not for sources that prescribe their splits.
        block_m: side of the blocks of ground that are dealt out; None: up to 4 tiles.
        min_side_px: what is left of a tile that gives way to another split is at least so wide.
        seed: of the split.
        workers: processes.
        scheduler: address of a scheduler of dask.distributed, whose workers make the tiles instead; the data and the
            folder of `out` have to be on a file system that they share under the same paths.
        strict: the first problem stops the conversion. skip_invalid: tiles that cannot be made are left out; else all
            of them are named, and nothing is written.
        overwrite: replace what is there.
    """

    split: list[str] | None = None
    block_m: float | None = None
    min_side_px: int = 32
    seed: int = 0
    workers: int = 1
    scheduler: str | None = None
    strict: bool = False
    skip_invalid: bool = False
    overwrite: bool = False


def add_arguments(parser, skips: bool = False) -> None:
    """`--out` and the options of `Options` that a user sets, `--split` and `--block-m` among them.

    Args:
        skips: whether tiles that cannot be made are left out by default, as for a published archive; else they stop the
            conversion, and `--skip-invalid` leaves them out.
    """
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make")
    parser.add_argument(
        "--split",
        nargs="+",
        metavar="NAME=SHARE",
        help="deal out blocks of ground, e.g. train=80 val=10 test=10",
    )
    parser.add_argument(
        "--block-m", type=float, metavar="M", help="side of these blocks, metres (default: up to 4 tiles)"
    )
    parser.add_argument(
        "--workers", type=cli.positive, default=1, metavar="N", help="processes (default: %(default)s)"
    )
    parser.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="make tiles on the workers of a dask scheduler, e.g. tls://host:8786; the data and --out have to be on a "
        "file system that they share. Messages are pickles: use tcp:// on localhost only",
    )
    parser.add_argument("--strict", action="store_true", help="stop at the first problem with the data")
    if skips:
        parser.set_defaults(skip_invalid=True)
    else:
        parser.add_argument(
            "--skip-invalid", action="store_true", help="leave out unusable images, and name them"
        )
    parser.add_argument("--overwrite", action="store_true", help="replace --out")
    cli.seed_argument(parser)


def options_from(args, **changes) -> Options:
    """`Options` of a command line with `add_arguments`."""
    names = {f.name for f in dataclasses.fields(Options)}
    return Options(**{**{name: value for name, value in vars(args).items() if name in names}, **changes})


def convert(source: Source, out: Path, options: Options, recipe: dict) -> Report:
    """Make a data set at `out`: `annotations/<split>.json`, and the rasters that the source writes.

    It appears whole or not at all. A run that is stopped leaves a hidden folder beside `out`, from which the same
    command goes on; when `out` is there already from the same files and options, nothing is done.

    Args:
        recipe: what the user asked the source for, plain values; another recipe is another data set.

    Raises:
        WorkerError: the processes or the cluster failed; what is finished stays in the hidden folder.
        InputError: a source refuses; a problem, where `strict`; unusable tiles, unless `skip_invalid`; no tile is left
            or a split gets none; `out` exists, was made in another way and is not to be overwritten, or holds what is
            converted.
    """
    out = Path(out)
    if options.block_m is not None and not 1 <= options.block_m <= 1e7:
        raise InputError(f"`block_m` is {options.block_m}, expected 1 to 1e7 metres.")
    check_workers(options.workers, options.scheduler)
    parse_split(options.split)
    problems = Problems(options.strict)
    recipe = _plain({**recipe, **{k: v for k, v in vars(options).items() if k not in NOT_IN_RECIPE}})
    fingerprint = _fingerprint(source, recipe)
    clear_published(out)
    if not options.overwrite and (known := _finished(out, fingerprint, recipe)) is not None:
        return known
    require_new_dir(out, RECORD_FILE, options.overwrite)
    _refuse_inside(out, source)
    place = Path(os.path.abspath(out))  # "." and ".." have no name to put beside
    if place == Path.cwd():
        raise InputError(f"{out}: is the folder in which this runs, expected one to make. Name one in it.")
    places = source.places(problems)
    _refuse_unusable(problems, options)
    if not places:
        raise InputError(_no_tile(source, problems))

    # Version 0.5 kept there what a stopped run had finished, which cannot be taken up.
    shutil.rmtree(place.with_name(f".{place.name}.unfinished"), ignore_errors=True)
    with Store(out, {"fingerprint": fingerprint}) as store:
        try:
            report = _convert(source, store, options, places, problems)
        except WorkerError:
            raise
        except InputError:
            store.remove()
            raise
        record = {"fingerprint": fingerprint, "recipe": recipe, "report": _plain(vars(report))}
        write_json(record, store.made / RECORD_FILE, indent=1)
        store.publish()
    return report


def _convert(
    source: Source, store: Store, options: Options, places: list[Place], problems: Problems
) -> Report:
    shards = Shards(store, places, options.workers, options.scheduler)
    shards.make(source, options.strict)
    report = Report()
    kept, named = [], set()
    for line in shards.lines():
        if line.get("unusable"):
            # Every tile of one image says the same of it.
            if line["unusable"] not in named:
                problems.add(UNUSABLE, line["unusable"])
                named.add(line["unusable"])
        elif line["image"] is not None:
            kept.append(line["i"])
    _refuse_unusable(problems, options)
    if not kept and named:
        raise InputError(f"no tile is left of {len(places)} tiles: {problems.named[UNUSABLE][0]}")
    if not kept:
        raise InputError(
            f"no tile is left of {len(places)} tiles ({_why(shards) or 'unusable'}). See `max_nodata`, "
            "where there is one."
        )
    names, split, smaller = _splits([places[i] for i in kept], options)
    replaced = {kept[k]: place for k, place in smaller.items()}
    shards.remake(source, options.strict, replaced)
    split = dict(zip(kept, split.tolist(), strict=True))
    _merge(source, shards, names, split, places, store.made, problems, report)
    return report


def _why(shards: "Shards") -> str:
    counts = sum(
        (Counter(line["counts"].get("tiles", {})) for line in shards.lines() if "counts" in line), Counter()
    )
    return counted(counts) if counts else ""


def _refuse_unusable(problems: Problems, options: Options) -> None:
    found = problems.named.get(UNUSABLE, [])
    if found and not options.skip_invalid:
        if problems.counts[UNUSABLE] == 1:
            raise InputError(found[0])
        bad = "\n  ".join(found)
        raise InputError(f"{problems.counts[UNUSABLE]} images cannot be used (see `skip_invalid`):\n  {bad}")


def _no_tile(source: Source, problems: Problems) -> str:
    """Return why there is nothing to convert: the first problem with the data, else where it was looked for."""
    reasons = [message for messages in problems.named.values() for message in messages]
    if reasons:
        return f"no tile is found in the data, of {sum(problems.counts.values())} problems the first: {reasons[0]}"
    first = next(iter(source.files()), None)
    return "no tile is found in the data." if first is None else f"{first}: no tile is found in the data."


# ---- What a result follows from -----------------------------------------------------------------------------------


def _plain(value):
    """`value` as JSON would hand it back, with paths as text."""
    return json.loads(json.dumps(value, default=lambda v: v if isinstance(v, dict) else _text(v)))


def _text(value):
    if dataclasses.is_dataclass(value):
        return dataclasses.asdict(value)
    # However a file is named, it is the same one.
    return str(value.absolute() if isinstance(value, Path) else value)


def _fingerprint(source: Source, recipe: dict) -> str:
    """Changes with the recipe, with any input file, and with the version of this package."""

    def parts():
        yield json.dumps([__version__, recipe], sort_keys=True).encode()
        for path in source.files():
            state = file_state(path)
            yield f"{' '.join(map(str, state or (path.absolute(), 'missing')))}\n".encode()

    return sha256(parts())


def _finished(out: Path, fingerprint: str, recipe: dict) -> Report | None:
    """The report of a conversion that is there already and would come out the same; None where none is there.

    Raises:
        InputError: another one is there; what differs is named.
    """
    if not (out / RECORD_FILE).is_file():
        return None
    record = read_json(out / RECORD_FILE)
    old = record.get("recipe") if isinstance(record, dict) else None
    if not isinstance(old, dict):
        return None
    if record.get("fingerprint") != fingerprint:
        absent = object()
        differing = [k for k in {**old, **recipe} if old.get(k, absent) != recipe.get(k, absent)]
        why = (
            f"made with another {', '.join(differing)}"
            if differing
            else "and its files or this program changed"
        )
        raise InputError(
            f"{out}: already exists, {why}. Choose another name, or pass `overwrite=True` to replace it."
        )
    try:
        report = Report(**record["report"])
        for name in ("tiles", "labels", "heights", "unknown_heights", "problems"):
            setattr(report, name, Counter(getattr(report, name)))
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{out / RECORD_FILE}: its report is not as this version writes it ({error!r}). Pass `overwrite=True` to "
            "convert again."
        ) from None
    report.unchanged = True
    return report


def _refuse_inside(out: Path, source: Source) -> None:
    """Refuse to replace a folder that holds what is converted."""
    if not out.is_dir() or not any(out.iterdir()):
        return
    folder = out.resolve()
    held = next((path for path in source.files() if path.resolve().is_relative_to(folder)), None)
    if held is not None:
        raise InputError(
            f"{out}: holds {held}, which is to be converted, so it is not replaced. Choose another folder for `out`."
        )


# ---- Splits ----------------------------------------------------------------------------------------------


def _splits(places: list[Place], options: Options) -> tuple[list[str], np.ndarray, dict[int, Place]]:
    """(names, (N,) index of each place's split or -1, place -> the smaller one that takes its place).

    Prescribed splits are taken as they are. Otherwise blocks of ground are dealt out, and a tile that reaches into the
    ground of another split is cut back, or left out.
    """
    prescribed = [place.split for place in places]
    if any(prescribed):
        if options.split:
            raise InputError("`split`: these data prescribe their splits. Leave it out.")
        names = list(dict.fromkeys(name for name in prescribed if name))
        return names, np.array([names.index(name) if name else -1 for name in prescribed]), {}
    shares = parse_split(options.split)
    names = list(shares)
    grounds = _grounds(places)
    if grounds is None:
        split = _by_group(places, shares, options.seed)
    else:
        x0, y0, x1, y1 = shapely.bounds(grounds).T
        side = float(np.median(np.maximum(x1 - x0, y1 - y0)))
        split = assign_blocks(grounds, shares, side, options.block_m, options.seed)
    smaller = {}
    for k, others in ({} if grounds is None or len(names) == 1 else conflicts(grounds, split)).items():
        place = places[k]
        around = [map_to_pixel(places[o].ground(place.crs), place.transform) for o in others]
        window = clear_of(place.window, around, options.min_side_px)
        if window is None:
            split[k] = -1
        else:
            smaller[k] = dataclasses.replace(place, window=window)
    _leave_out_doubles(places, split, smaller)
    for index, name in enumerate(names):
        if not (split == index).any() and grounds is None:
            # Tiles of one image may overlap, and their ground is unknown.
            raise InputError(
                f"split {name!r} gets no image: without a georeference an image is in one split as a whole. Leave out "
                "`split`, or give the images a georeference: gdal_translate -a_srs CRS -a_ullr LEFT TOP RIGHT BOTTOM "
                "IN OUT."
            )
        if not (split == index).any():
            raise InputError(
                f"split {name!r} gets no tile ({len(places)} tiles in all). Use fewer splits, smaller tiles, less "
                "`overlap` or another `block_m`."
            )
    return names, split, smaller


def _leave_out_doubles(places: list[Place], split: np.ndarray, smaller: dict[int, Place]) -> None:
    """Leave out what was cut back to the corner of a larger tile of its image: its files would have the same names."""
    at_corner: dict[tuple, int] = {}
    for k in np.flatnonzero(split >= 0).tolist():
        place = smaller.get(k, places[k])
        x0, y0, width, height = place.window
        other = at_corner.setdefault((place.image, x0, y0), k)
        if other == k:
            continue
        _, _, other_width, other_height = smaller.get(other, places[other]).window
        less = k if k in smaller and width * height <= other_width * other_height else other
        if less in smaller:
            at_corner[place.image, x0, y0] = other if less == k else k
            split[less] = -1
            del smaller[less]


def _by_group(places: list[Place], shares: dict[str, float], seed: int) -> np.ndarray:
    """Splits of tiles without georeference: groups, else single images, are dealt out."""
    keys = {key: n for n, key in enumerate(dict.fromkeys(p.group or f"\0{p.image}" for p in places))}
    rows = np.array([keys[p.group or f"\0{p.image}"] for p in places])
    boxes = shapely.box(rows * 10.0, 0, rows * 10.0 + 1, 1)
    return assign_blocks(boxes, shares, 1.0, 10.0, seed)


def _grounds(places: list[Place]) -> np.ndarray | None:
    """(N,) outlines in one CRS in metres; None when a place has no georeference."""
    if any(place.transform is None for place in places):
        return None
    first = places[0]
    crs = None
    if first.crs is not None:
        crs = metric_crs(first.crs, *first.ground(None).centroid.coords[0])
    if any(place.crs not in (None, crs) for place in places):
        return np.array([place.ground(crs) for place in places])
    # Nothing is bent: corners suffice, of all places at once.
    a, b, c, d, e, f = np.array([place.transform for place in places], float).T[..., None]
    x0, y0, width, height = np.array([place.window for place in places], float).T[..., None]
    u, v = x0 + width * [0, 1, 1, 0], y0 + height * [0, 0, 1, 1]
    return shapely.polygons(np.stack([a * u + b * v + c, d * u + e * v + f], axis=-1))


def _leaked(grounds: dict[str, list[Place]]) -> float | None:
    places = [place for of_split in grounds.values() for place in of_split]
    split = np.repeat(np.arange(len(grounds)), [len(of_split) for of_split in grounds.values()])
    outlines = _grounds(places)
    return None if outlines is None else leaked_area(outlines, split)


def _merge(source, shards: Shards, names, split: dict, places, out: Path, problems, report) -> None:
    """Write the annotation files, and fill the report."""
    # In the order of their places, as the tiles that they stand for.
    remade = shards.remade()
    smaller = next(remade, None)
    files_made_anew = shards.remade_files()
    sample = _Sample()
    notes: dict[str, None] = {}
    written: dict[str, list[Place]] = {name: [] for name in names}
    infos: dict[str, dict] = {name: {} for name in names}
    report.splits = {name: {"tiles": 0, "buildings": 0, "known heights": 0} for name in names}
    with contextlib.ExitStack() as files:
        writers = [
            files.enter_context(
                CocoWriter(out / "annotations" / f"{name}.json", source.bands, infos[name], source.nodata)
            )
            for name in names
        ]
        for line in shards.lines():
            i = line["i"]
            if line.get("unusable"):
                report.tiles["unusable"] += 1
                continue
            cut_back = smaller is not None and smaller["i"] == i
            if cut_back:
                line, smaller = smaller, next(remade, None)
            _note_problems(line, problems)
            if line.get("image") is None or split.get(i, -1) < 0:
                if i in split:
                    if line.get("image"):
                        remove_own(out, line["image"], files_made_anew)
                    report.tiles["left out at another split"] += 1
                else:
                    report.add({"tiles": line["counts"].get("tiles", {})})
                continue
            name = names[split[i]]
            report.tiles["cut back at another split"] += cut_back
            writers[split[i]].add(line["image"], line["annotations"])
            written[name].append(_placed(places[i], line["image"]) if cut_back else places[i])
            sample.offer(line)
            notes.update(dict.fromkeys(line["notes"]))
            _count(report, name, line)
        report.notes += notes
        report.drop_zeros()
        for name in names:
            if not written[name]:
                raise InputError(f"split {name!r} is left without any tile.")
        report.leaked_m2 = _leaked(written)
        report.problems, report.named = problems.counts, problems.named
        source.finish(Dataset(sample.tiles(), source.bands, nodata=source.nodata, root=out), report)
        facts = {key: value for key, value in vars(report).items() if key not in ("named", "unchanged")}
        for name in names:
            infos[name].update(_plain({**source.info(), "split": name, **facts}))


def _placed(place: Place, image: dict) -> Place:
    """Where the tile is that was made at less than `place`: its own transform says where its window lies."""
    window = (0, 0, image["width"], image["height"])
    return dataclasses.replace(place, window=window, transform=tuple(image["transform"]))


def _note_problems(line: dict, problems: Problems) -> None:
    for kind, message in line.get("problems", ()):
        if len(problems.named.setdefault(kind, [])) < MAX_NAMED:
            problems.named[kind].append(message)
    problems.counts.update(line.get("problem_counts", {}))


def _count(report: Report, name: str, line: dict) -> None:
    report.add(line["counts"])
    annotations = line["annotations"]
    known = sum(a["height_m"] is not None for a in annotations)
    report.tiles["written"] += 1
    report.tiles["without buildings"] += not annotations
    report.heights.update({"known": known, "unknown": len(annotations) - known})
    of_split = report.splits[name]
    for key, n in (("tiles", 1), ("buildings", len(annotations)), ("known heights", known)):
        of_split[key] += n


class _Sample:
    """Some of the tiles with buildings, evenly spread."""

    def __init__(self):
        self._step, self._seen, self._lines = 1, 0, []
        self._most = 2 * SAMPLE

    def offer(self, line: dict) -> None:
        if not line["annotations"]:
            return
        if self._seen % self._step == 0:
            self._lines.append(line)
            if len(self._lines) > self._most:  # twice as sparse from here on
                self._lines, self._step = self._lines[::2], 2 * self._step
        self._seen += 1

    def tiles(self) -> list[Tile]:
        return [tile_from_records(line["image"], line["annotations"]) for line in self._lines]
