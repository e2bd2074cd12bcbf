"""An ablation small enough for a test: two networks of a few thousand weights, two steps, four tiles."""

import re

from tests.support.ablation_cases import CONDITIONS, NARROW, ROWS
from tests.support.tiny_city import tiny_config, write_split

import pytest


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """A folder with the data sets train and val, and base.yaml."""
    root = tmp_path_factory.mktemp("ablation")
    write_split(root, "train")
    write_split(root, "val", (2, 3), seed=5)
    write_split(root, "test", (4, 3), seed=6)
    (root / "base.yaml").write_text(tiny_config(root, *NARROW).dump())
    return root


@pytest.fixture(scope="session")
def write_spec(place):
    """write_spec(rows=, conditions=, **keys): path of a specification; TEST in it is the test set's name."""

    def write(rows=ROWS, conditions=CONDITIONS, name="spec.yaml", **keys):
        names = {s: str(place / "annotations" / f"{s}.json") for s in ("train", "val", "test")}
        values = {"base": "base.yaml", "steps": 2, "seeds": [1], "compare_to": "early", "cost_rounds": 1}
        values |= {"train": [names["train"]], "val": [names["val"]], **keys}
        text = "".join(f"{key}: {value}\n" for key, value in values.items() if value is not None)
        text += f"rows:{rows}\nconditions:{conditions}\n"
        (place / name).write_text(re.sub(r"TEST(?!\.)", names["test"], text))
        return place / name

    return write
