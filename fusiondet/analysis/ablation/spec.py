"""The specification of an ablation: which networks, on which data, judged under which conditions.

A plain YAML file. A row is one network, a condition one way of looking at it, and a *column* what a table shows of a
condition: the condition itself, or one of its regions, `clouds/under_cloud`.

    data:            made when absent, by the words of tools/prepare_dataset.py; abl_train is split train of abl
      abl: [synthetic, --preset, realistic, --split, train=800, val=60]
    base: Base-Ablation.yaml          # config below all rows, relative to this file
    train: [abl_train]                # the same data for all rows; names as in DATASETS.TRAIN
    val: [abl_val]                    # chooses the best checkpoint by TEST.BEST_METRIC, and calibrates intervals
    steps: 1500                       # SOLVER.MAX_ITER of all rows
    seeds: [1]                        # SEED: weights, order of tiles, augmentation
    rows:
      rgb: {label: RGB, overrides: {INPUT.MODALITIES: [optical]}}
      early: {label: Early fusion}
      late: {label: Late, config: other.yaml}      # instead of `base`
    conditions:
      clear: {dataset: abltest_test}
      clouds: {dataset: ablcloud_test, regions: [under_cloud, in_the_clear]}
      no_sar: {dataset: abltest_test, overrides: {MODEL.FUSION.DISABLED: sar}}
      shift: {dataset: ablshift_test, needs: [sar]}         # shown for networks that see SAR alone
    compare_to: early                 # every other row is compared with this one
    metrics: [segm/AP50, joint/AP50, height/mae_m]          # what the tables show
    claims:                           # differences `to` - `from` with their intervals, and whether they are shown
      - {claim: "Under cloud, fusion finds more", metric: segm/AP50, from: [rgb, clouds/under_cloud],
         to: [early, clouds/under_cloud], above: 0}
    galleries:                        # pictures of results.html: what these rows say of tiles of the first condition
      - {title: All of them, rows: [rgb, early, late], tiles: 3}
    cost_rounds: 10                   # timed steps and inferences per row, taken in turns; 0: none

A condition that hides a modality (MODEL.FUSION.DISABLED) holds for networks that see both.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import fusiondet.compat  # noqa: F401  (before detectron2)
from fusiondet.config import find_config
from fusiondet.config_loading import load_config
from fusiondet.config_text import safe_yaml
from fusiondet.data import catalog
from fusiondet.engine.checkpoint import network_differences
from fusiondet.errors import InputError, unknown_name
from fusiondet.evaluation.regions import REGIONS
from fusiondet.evaluation.resampling import SUMMARY_KEYS

from detectron2.config import CfgNode

DEFAULT_METRICS = ("segm/AP50", "joint/AP50", "height/mae_m")
# What all rows have in common is said once, and where.
_COMMON = {
    "DATASETS.TRAIN": "'train'",
    "DATASETS.TEST": "'val'",
    "SOLVER.MAX_ITER": "'steps'",
    "SEED": "'seeds'",
    "OUTPUT_DIR": "`out`",
}


@dataclass(frozen=True)
class Row:
    """One network: config file `config`, `overrides` as KEY VALUE words, and what it sees."""

    name: str
    label: str
    config: Path
    overrides: tuple
    modalities: tuple[str, ...] = ()


@dataclass(frozen=True)
class Condition:
    """One way of looking at the networks.

    Attributes:
        dataset: name of the split that is scored.
        overrides: KEY VALUE words for the evaluation alone.
        needs: modalities without which the condition says nothing about a network.
        regions: parts of the tiles, of fusiondet.evaluation.regions.REGIONS, that are scored apart as well.
    """

    name: str
    dataset: str
    overrides: tuple = ()
    needs: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()

    @property
    def columns(self) -> list[str]:
        """The condition's own name, then one name per region."""
        return [self.name, *(f"{self.name}/{region}" for region in self.regions)]

    def holds_for(self, row: Row) -> bool:
        """Whether it says something about `row`: it sees what is needed, and sees more than what is hidden."""
        hidden = dict(zip(self.overrides[::2], self.overrides[1::2])).get("MODEL.FUSION.DISABLED", "")
        sees_both = len(row.modalities) > 1
        return set(self.needs) <= set(row.modalities) and (not hidden or sees_both)


@dataclass(frozen=True)
class Claim:
    """A difference in `metric` between two cells (row, column): `to` minus `start`; shown if above or below a bound."""

    text: str
    metric: str
    start: tuple[str, str]
    to: tuple[str, str]
    above: float | None = None
    below: float | None = None


@dataclass(frozen=True)
class Gallery:
    """A picture of what networks say of the same `tiles`; `rows`: name -> label."""

    title: str
    rows: dict[str, str]
    tiles: int = 3


@dataclass(frozen=True)
class Spec:
    """A whole ablation, checked; the keys of the file as attributes."""

    path: Path
    data: dict[str, list[str]]
    train: tuple[str, ...]
    val: tuple[str, ...]
    steps: int
    seeds: tuple[int, ...]
    rows: dict[str, Row]
    conditions: dict[str, Condition]
    compare_to: str
    metrics: tuple[str, ...] = DEFAULT_METRICS
    claims: tuple[Claim, ...] = ()
    galleries: tuple[Gallery, ...] = ()
    cost_rounds: int = 10
    overrides: tuple = field(default=())

    @property
    def columns(self) -> list[str]:
        """Columns of all conditions, in order."""
        return [column for condition in self.conditions.values() for column in condition.columns]

    @property
    def shown_metrics(self) -> tuple[str, ...]:
        """Those of tables and claims, each once."""
        return tuple(dict.fromkeys((*self.metrics, *(claim.metric for claim in self.claims))))

    def condition_of(self, column: str) -> Condition:
        """The condition that `column` belongs to."""
        return self.conditions[column.partition("/")[0]]

    def cells(self) -> Iterator[tuple[Row, str]]:
        """(row, column) of every number that there is to be, row by row."""
        for row in self.rows.values():
            for condition in self.conditions.values():
                if condition.holds_for(row):
                    yield from ((row, column) for column in condition.columns)

    def config(self, row: Row, seed: int, condition: Condition | None = None) -> CfgNode:
        """The config that `row` is trained with, or with `condition` evaluated with; data sets by their names.

        Raises:
            InputError: it does not load; the message names this file and the row, or the command line.
        """
        common = ["DATASETS.TRAIN", list(self.train), "DATASETS.TEST", list(self.val)]
        words = [
            *common,
            "SOLVER.MAX_ITER",
            self.steps,
            *row.overrides,
            *(condition.overrides if condition else ()),
        ]
        where = f"{self.path}: row {row.name!r}" + (
            f" under condition {condition.name!r}" if condition else ""
        )
        if not row.config.is_file():
            raise InputError(f"{where}: no such config file: {row.config}.")
        try:
            load_config(row.config, words)
        except InputError as error:
            raise InputError(f"{where}: {str(error).removeprefix('command line: ')}") from None
        return load_config(row.config, [*words, *self.overrides, "SEED", seed])


# ---- Reading ---------------------------------------------------------------------------------------------


def read_spec(path: Path, overrides: list[str] = (), seeds: list[int] | None = None) -> Spec:
    """The specification in `path`, with every row's config loaded once.

    Args:
        overrides: KEY VALUE words for all rows, after their own.
        seeds: instead of the file's.

    Raises:
        InputError: a key, row, condition, data set, metric or region that is unknown or has no meaning, or a config
            that does not load; the message names the file.
    """
    path = find_config(path) or Path(path)
    tree = _Tree(safe_yaml(_text(path), str(path)), str(path))
    known = "data base train val steps seeds rows conditions compare_to metrics claims galleries cost_rounds"
    tree.only(known.split())
    if len(overrides) % 2:
        raise InputError(
            f"config overrides come as KEY VALUE pairs, found {len(overrides)}: {' '.join(overrides)}"
        )
    _refuse_common(overrides[::2], "command line", steps_too=False)
    spec = Spec(
        path=path,
        data={k: [str(w) for w in tree.sub("data").list(k)] for k in tree.sub("data").keys()},
        train=tuple(tree.list("train", str)),
        val=tuple(tree.list("val", str)),
        steps=tree.number("steps", 1),
        seeds=_seeds("command line", seeds) if seeds else _seeds(str(path), tree.list("seeds", int)),
        rows={name: _row(path, tree, name) for name in tree.sub("rows").keys()},
        conditions={name: _condition(tree, name) for name in tree.sub("conditions").keys()},
        compare_to=tree.text("compare_to"),
        metrics=tuple(tree.list("metrics", str) if "metrics" in tree.keys() else DEFAULT_METRICS),
        cost_rounds=tree.number("cost_rounds", 0) if "cost_rounds" in tree.keys() else 10,
        overrides=tuple(overrides),
    )
    spec = replace(spec, claims=tuple(_claims(tree)), galleries=tuple(_galleries(tree, spec.rows)))
    _check(spec)
    configs = {name: spec.config(row, spec.seeds[0]) for name, row in spec.rows.items()}
    rows = {
        name: replace(row, modalities=tuple(configs[name].INPUT.MODALITIES))
        for name, row in spec.rows.items()
    }
    spec = replace(spec, rows=rows)
    _check_conditions(spec, configs)
    _check_claims(spec)
    return spec


def _text(path: Path) -> str:
    if not path.is_file():
        raise InputError(f"{path}: no such file, expected the specification of an ablation.")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a text file, expected the specification of an ablation.") from None


class _Tree:
    """A mapping of the file that says where it is wrong."""

    def __init__(self, tree, where: str):
        if not isinstance(tree, dict):
            raise InputError(f"{where}: expected a mapping, found {tree!r}.")
        self.tree, self.where = tree, where

    def keys(self) -> list[str]:
        return list(self.tree)

    def only(self, known) -> None:
        for key in self.keys():
            if key not in known:
                raise InputError(f"{self.where}: {unknown_name('key', key, known)}")

    def sub(self, key: str) -> "_Tree":
        value = self.tree.get(key)
        return _Tree({} if value is None else value, f"{self.where}: {key}")

    def list(self, key: str, kind: type | None = None) -> list:
        value = self.tree.get(key, [])
        if not isinstance(value, list) or (kind and not all(isinstance(v, kind) for v in value)):
            raise InputError(f"{self.where}: {key} is {value!r}, expected a list, like [a, b].")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        value = self.tree.get(key, default)
        if not isinstance(value, str) or not value:
            raise InputError(f"{self.where}: {key} is {value!r}, expected a word.")
        return value

    def number(self, key: str, low: int) -> int:
        value = self.tree.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise InputError(f"{self.where}: {key} is {value!r}, expected a whole number, at least {low}.")
        return value

    def words(self, key: str) -> tuple:
        """A mapping {KEY: value} as KEY VALUE words."""
        return tuple(word for item in self.sub(key).tree.items() for word in item)


def _seeds(where: str, seeds: list[int]) -> tuple[int, ...]:
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise InputError(f"{where}: seeds is {seeds}, expected different whole numbers from 0 on.")
    return tuple(seeds)


def _row(path: Path, tree: _Tree, name: str) -> Row:
    entry = tree.sub("rows").sub(name)
    entry.only(("label", "config", "overrides"))
    _check_name(entry.where, name)
    overrides = entry.words("overrides")
    _refuse_common(overrides[::2], entry.where, steps_too=True)
    config = entry.text("config") if "config" in entry.keys() else tree.text("base")
    found = find_config(path.parent / config) or find_config(config) or path.parent / config
    return Row(name, entry.text("label", name), found, overrides)


def _condition(tree: _Tree, name: str) -> Condition:
    entry = tree.sub("conditions").sub(name)
    entry.only(("dataset", "overrides", "needs", "regions"))
    _check_name(entry.where, name)
    for key, known in (("needs", ("optical", "sar")), ("regions", REGIONS)):
        for word in entry.list(key, str):
            if word not in known:
                raise InputError(f"{entry.where}: {unknown_name(key, word, known)}")
    needs, regions = tuple(entry.list("needs", str)), tuple(entry.list("regions", str))
    return Condition(name, entry.text("dataset"), entry.words("overrides"), needs, regions)


def _check_name(where: str, name: str) -> None:
    # It becomes a folder.
    if not all(c.isalnum() or c in "_-" for c in name):
        raise InputError(f"{where}: names have letters, digits, _ and - only.")


def _refuse_common(keys, where: str, steps_too: bool) -> None:
    for key in keys:
        if key in _COMMON and (steps_too or key != "SOLVER.MAX_ITER"):
            raise InputError(
                f"{where}: {key} is the same for all rows; set it by {_COMMON[key]} of the ablation instead."
            )


def _claims(tree: _Tree) -> Iterator[Claim]:
    for i, value in enumerate(tree.list("claims"), start=1):
        entry = _Tree(value, f"{tree.where}: claim {i}")
        entry.only(("claim", "metric", "from", "to", "above", "below"))
        ends = []
        for key in ("from", "to"):
            pair = entry.list(key, str)
            if len(pair) != 2:
                raise InputError(f"{entry.where}: {key} is {pair}, expected [row, condition].")
            ends.append(tuple(pair))
        bounds = {key: entry.tree.get(key) for key in ("above", "below")}
        for key, bound in bounds.items():
            if isinstance(bound, bool) or not isinstance(bound, int | float | None):
                raise InputError(f"{entry.where}: {key} is {bound!r}, expected a number.")
        default = f"{ends[1][0]} ({ends[1][1]}) against {ends[0][0]} ({ends[0][1]})"
        yield Claim(entry.text("claim", default), entry.text("metric"), *ends, **bounds)


def _galleries(tree: _Tree, rows: dict[str, Row]) -> Iterator[Gallery]:
    titles = set()
    for i, value in enumerate(tree.list("galleries"), start=1):
        entry = _Tree(value, f"{tree.where}: gallery {i}")
        entry.only(("title", "rows", "tiles"))
        names, title = entry.list("rows", str), entry.text("title")
        for name in names:
            if name not in rows:
                raise InputError(f"{entry.where}: {unknown_name('row', name, rows)}")
        if not names or title in titles:
            raise InputError(f"{entry.where}: expected rows, and a title of its own, found {value}.")
        titles.add(title)
        tiles = entry.number("tiles", 1) if "tiles" in entry.keys() else Gallery.tiles
        yield Gallery(title, {name: rows[name].label for name in names}, tiles)


# ---- Checking --------------------------------------------------------------------------------------------


def _check(spec: Spec) -> None:
    for what in ("train", "val", "rows", "conditions", "metrics"):
        if not getattr(spec, what):
            raise InputError(f"{spec.path}: {what} is empty or missing.")
    if spec.compare_to not in spec.rows:
        raise InputError(
            f"{spec.path}: compare_to: {unknown_name('reference row', spec.compare_to, spec.rows)}"
        )
    for metric in spec.shown_metrics:
        if metric not in SUMMARY_KEYS:
            raise InputError(f"{spec.path}: {unknown_name('metric', metric, SUMMARY_KEYS)}")
    for name in spec.data:
        _check_name(f"{spec.path}: data: {name}", name)
    named = {"train": spec.train, "val": spec.val}
    named |= {f"conditions: {c.name}: dataset": (c.dataset,) for c in spec.conditions.values()}
    for where, names in named.items():
        for name in names:
            _check_dataset(spec, where, name)


def own_dataset(spec: Spec, name: str) -> tuple[str, str] | None:
    """(data set, split) when `name` belongs to the file's own `data`; None for names of the catalog."""
    owners = [key for key in spec.data if name.startswith(f"{key}_") and len(name) > len(key) + 1]
    if not owners:
        return None
    owner = max(owners, key=len)
    return owner, name[len(owner) + 1 :]


def _check_dataset(spec: Spec, where: str, name: str) -> None:
    if own_dataset(spec, name):
        return
    try:
        catalog.annotation_file(name)
    except InputError as error:
        own = ", ".join(f"{key}_<split>" for key in spec.data) or "none"
        raise InputError(f"{spec.path}: {where}: {error} From `data` of this file: {own}.") from None


def _check_conditions(spec: Spec, configs: dict[str, CfgNode]) -> None:
    """A condition can hide or replace what a network sees, but not be about another network."""
    for condition in spec.conditions.values():
        for row in spec.rows.values() if condition.overrides else ():
            if not condition.holds_for(row):
                continue
            changed = network_differences(configs[row.name], spec.config(row, spec.seeds[0], condition))
            if changed:
                raise InputError(
                    f"{spec.path}: condition {condition.name!r} makes another network of row {row.name!r} than is "
                    f"trained: {', '.join(changed)}. Hide a modality by MODEL.FUSION.DISABLED; another network "
                    "is another row."
                )


def _check_claims(spec: Spec) -> None:
    cells = {(row.name, column) for row, column in spec.cells()}
    for claim in spec.claims:
        where = f"{spec.path}: claim {claim.text!r}"
        for row, column in (claim.start, claim.to):
            if row not in spec.rows:
                raise InputError(f"{where}: {unknown_name('row', row, spec.rows)}")
            if column not in spec.columns:
                raise InputError(f"{where}: {unknown_name('condition', column, spec.columns)}")
            if (row, column) not in cells:
                raise InputError(
                    f"{where}: condition {column} says nothing about row {row}, which lacks a modality."
                )
        first, second = (spec.condition_of(column).dataset for _, column in (claim.start, claim.to))
        if first != second or claim.start[1].partition("/")[2] != claim.to[1].partition("/")[2]:
            raise InputError(
                f"{where}: compares {claim.start[1]} with {claim.to[1]}, which are not the same tiles, so that "
                "no pairs can be made. Name two conditions with one data set and region."
            )
