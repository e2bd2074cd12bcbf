"""What a check of a data set says: a verdict, what was found, what to do, numbers for programs, tiles to look at."""

import math
from dataclasses import dataclass, field
from typing import Any

# Worst first. "n/a": the data do not say enough for this check.
VERDICTS = ("FAIL", "warn", "n/a", "ok")
# More tiles than this show no more.
MAX_CASES = 6


@dataclass(frozen=True)
class Case:
    """A tile that shows a finding.

    Attributes:
        split: name of its split. image: its `file_name`.
        note: what is to be seen there, a few words; "" where the finding says it.
    """

    split: str
    image: str
    note: str = ""


@dataclass(frozen=True)
class Finding:
    """Outcome of one check.

    Attributes:
        name: what was checked, a few words.
        verdict: one of `VERDICTS`.
        detail: what was found, one or two sentences, with the numbers.
        remedy: what to do; "" for "ok".
        numbers: the same as plain numbers, texts, lists and dicts of them; None where unknown, never NaN.
        cases: the worst tiles.
    """

    name: str
    verdict: str
    detail: str
    remedy: str = ""
    numbers: dict[str, Any] = field(default_factory=dict)
    cases: tuple[Case, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As stored in JSON."""
        return {
            "name": self.name,
            "verdict": self.verdict,
            "detail": self.detail,
            "remedy": self.remedy,
            "numbers": plain(self.numbers),
            "cases": [{"split": c.split, "image": c.image, "note": c.note} for c in self.cases],
        }


def worst_first(findings: list[Finding]) -> list[Finding]:
    """`findings` by verdict; those of one verdict stay in their order."""
    return sorted(findings, key=lambda f: VERDICTS.index(f.verdict))


def verdict_line(findings: list[Finding]) -> str:
    """How many findings have which verdict, as one sentence."""
    counts = {v: sum(f.verdict == v for f in findings) for v in VERDICTS}
    words = {"FAIL": "failed", "warn": "to look at", "n/a": "not possible", "ok": "ok"}
    return f"{len(findings)} checks: " + ", ".join(f"{counts[v]} {words[v]}" for v in VERDICTS) + "."


def text(findings: list[Finding]) -> str:
    """The findings as lines, worst first, each with what to do and where to look; the last line sums up."""
    lines = []
    for finding in worst_first(findings):
        lines.append(f"{finding.verdict:<4}  {finding.name}: {finding.detail}")
        if finding.remedy:
            lines.append(f"      -> {finding.remedy}")
        if finding.cases and finding.verdict != "ok":
            shown = [f"{c.image}{f' ({c.note})' if c.note else ''}" for c in finding.cases[:3]]
            lines.append(f"      see {', '.join(shown)}")
    return "\n".join([*lines, verdict_line(findings)])


def counted(n: int, what: str) -> str:
    """`1 tile`, `3 tiles`, `2 copies`."""
    if n == 1:
        return f"1 {what}"
    return f"{n} {what[:-1]}ies" if what.endswith("y") else f"{n} {what}s"


def percent(share: float) -> str:
    """A share in [0, 1] as text: two digits, "below 0.1 %", and 100 % for all alone."""
    if 0 < share < 0.001:
        return "below 0.1 %"
    if 0.995 <= share < 1:
        return f"{min(100 * share, 99.9):.1f} %"
    return f"{100 * share:.0f} %" if share >= 0.095 or share == 0 else f"{100 * share:.1f} %"


def plain(value: Any) -> Any:
    """`value` of numpy and Python numbers as what JSON knows: lists, dicts with text keys, None for NaN."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if hasattr(value, "tolist"):  # arrays and scalars of numpy
        return plain(value.tolist())
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value
