"""What happened in a conversion, in counts and words: for the terminal, and for what is written."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from fusiondet import cli
from fusiondet.errors import InputError

# Of one kind of problem, so many are named; all of them are counted.
MAX_NAMED = 50
# Kinds of problems that leave out a tile or an image.
UNUSABLE = "unusable images"
# Heading of the sums that compare two heights of the same building: n, their difference, its absolute value.
COMPARED = "compared"


class Problems:
    """What is wrong with the data: counted by kind, the first of each kind named.

    Attributes:
        counts: kind -> how many. named: kind -> messages, `MAX_NAMED` at most.
    """

    def __init__(self, strict: bool = False):
        """Args: `strict` makes the first problem an InputError."""
        self.strict = strict
        self.counts: Counter = Counter()
        self.named: dict[str, list[str]] = {}

    def add(self, kind: str, message: str, count: int = 1) -> None:
        """Note one problem, or `count` of them that one message names.

        Args:
            kind: in the plural, as in "3 labels without an image".
            message: names the file, what was expected and what was found.

        Raises:
            InputError: `message`, where this is strict.
        """
        if self.strict:
            raise InputError(message)
        self.counts[kind] += count
        if len(self.named.setdefault(kind, [])) < MAX_NAMED:
            self.named[kind].append(message)

    def lines(self) -> list[str]:
        """Text for the user, a line for each kind and one for each named problem."""
        found = []
        for kind, count in self.counts.items():
            found.append(f"problem: {count} {kind}")
            found += [f"  {message}" for message in self.named[kind]]
            if count > len(self.named[kind]) == MAX_NAMED:
                found.append(f"  ... and {count - len(self.named[kind])} more")
        return found


@dataclass
class Report:
    """What happened, for the user and for `conversion.json`. Counters: what -> how many.

    Attributes:
        tiles, labels, heights, unknown_heights: of the tiles of all splits. more: headings of the source's own.
        splits: name -> {"tiles", "buildings", "known heights"}. leaked_m2: ground that two splits share.
        problems: kind -> how many. named: kind -> messages.
        unchanged: the data set was there already, from the same files and options.
    """

    tiles: Counter = field(default_factory=Counter)
    labels: Counter = field(default_factory=Counter)
    heights: Counter = field(default_factory=Counter)
    unknown_heights: Counter = field(default_factory=Counter)
    more: dict[str, Counter] = field(default_factory=dict)
    splits: dict[str, dict] = field(default_factory=dict)
    leaked_m2: float | None = 0.0
    problems: Counter = field(default_factory=Counter)
    named: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    unchanged: bool = False

    def lines(self) -> list[str]:
        """The report as text."""
        problems = Problems()
        problems.counts, problems.named = self.problems, self.named
        leak = "not measured, no georeference" if self.leaked_m2 is None else f"{self.leaked_m2:.1f} m2"
        return [
            *(
                f"{heading}: {counted(counts)}"
                for heading, counts in self.more.items()
                if heading != COMPARED
            ),
            f"tiles: {counted(self.tiles)}",
            f"labels: {counted(self.labels)}",
            f"heights: {counted(self.heights)}",
            *([f"unknown heights: {counted(self.unknown_heights)}"] if self.unknown_heights else []),
            *([self.compared] if self.compared else []),
            *(f"{name}: {counted(counts)}" for name, counts in self.splits.items()),
            *([f"ground in two splits: {leak}"] if len(self.splits) > 1 else []),
            *(f"note: {note}" for note in self.notes),
            *problems.lines(),
        ]

    @property
    def compared(self) -> str | None:
        """How heights of two origins agree, where buildings have both; None where there are none."""
        sums = self.more.get(COMPARED)
        if not sums:
            return None
        n = sums["n"]
        return (
            f"height raster against the height field: n = {n}, MAE {sums['abs_m'] / n:.2f} m, "
            f"bias {sums['sum_m'] / n:+.2f} m"
        )

    def drop_zeros(self) -> None:
        """Leave out what did not occur."""
        for name in ("tiles", "labels", "heights", "unknown_heights"):
            setattr(self, name, +getattr(self, name))

    def add(self, counts: dict[str, dict]) -> None:
        """Add the counts of one tile."""
        for heading, of_tile in counts.items():
            known = heading in ("tiles", "labels", "heights", "unknown_heights")
            total = getattr(self, heading) if known else self.more.setdefault(heading, Counter())
            total.update(of_tile)


def counted(counts) -> str:
    """Text such as "3 kept, 1 dropped on no data"."""
    return ", ".join(f"{n:,} {what}".replace(",", " ") for what, n in counts.items() if n) or "none"


def show(report: "Report", out: Path) -> None:
    """Print what happened, and where the result is."""
    cli.say("\n".join(report.lines()))
    files = ", ".join(f"annotations/{name}.json" for name in report.splits)
    print(f"{out} is up to date: {files}" if report.unchanged else f"wrote {out}: {files}")
