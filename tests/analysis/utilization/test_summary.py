"""The report of a utilisation: the same numbers as text, Markdown and figure."""

from fusiondet.analysis.utilization.measurement import estimated
from fusiondet.analysis.utilization.summary import figure, markdown, text_table
from tests.support.messages import missing_facts

import numpy as np
import pytest
from matplotlib.text import Text

SCORES = ("segm/AP50", "height/delta1")


@pytest.fixture
def result():
    """A network that loses 20 AP50 without SAR, with certainty."""
    whole, without = {"segm/AP50": 80.0, "height/delta1": 0.75}, {"segm/AP50": 60.0, "height/delta1": 0.5}
    scores = {"as_is": whole}
    for part in ("optical", "sar"):
        for how in ("mean", "other_tile", "stand_in"):
            scores[f"{part}/{how}"] = without if part == "sar" else whole
    drawn = {
        name: {key: np.full(4, value) for key, value in values.items()} for name, values in scores.items()
    }
    return estimated(scores, drawn, {"tiles": 4}, ["a note"], SCORES)


def test_both_tables_hold_the_scores_and_what_is_lost(result):
    lost = ("SAR → its mean", "+20.0 [+20.0, +20.0]", "+0.250 [+0.250, +0.250]", "+0.0 [+0.0, +0.0]")
    for text in (text_table(result), markdown(result)):
        assert missing_facts(text, "80.0", "0.750", "a note", *lost) == []


def test_rows_of_markdown_have_the_columns_of_their_head(result):
    rows = [line for line in markdown(result).splitlines() if line.startswith("|")]
    counts = [line.replace("\\|", "").count("|") for line in rows]
    assert rows and all(a == b for a, b in zip(counts, counts[1:]) if a and b)


def test_the_figure_has_a_panel_for_each_score(result):
    drawn = figure(result)
    assert len(drawn.axes) == len(SCORES)
    words = " ".join(text.get_text() for text in drawn.findobj(Text))
    assert missing_facts(words, "AP50", "δ1", "points") == []
