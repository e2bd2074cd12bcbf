"""The text of configs: safe YAML, `_BASE_` chains, names of the previous version, and merging into a `CfgNode`.

Nothing here knows networks; `fusiondet.config_loading` checks what was read.
"""

import difflib
import logging
from pathlib import Path

import fusiondet.compat  # noqa: F401  (before detectron2)
from fusiondet import plugins
from fusiondet.config import defaults, find_config
from fusiondet.errors import InputError, unknown_name

import yaml
from detectron2.config import CfgNode as CN

_log = logging.getLogger(__name__)

# Config key of the previous version -> its name now; projects have their own, `Project.renamed_keys`.
RENAMED_KEYS = {
    "MODEL.DENSE_HEADS.DIM": "MODEL.DENSE_HEADS.CONV_DIM",
    "MODEL.DENSE_NET.FOOTPRINT_WEIGHT": "MODEL.DENSE_NET.FOOTPRINT.LOSS_WEIGHT",
    "MODEL.DENSE_NET.HEIGHT_WEIGHT": "MODEL.DENSE_NET.HEIGHT.LOSS_WEIGHT",
    "MODEL.DENSE_NET.REFINE": "MODEL.DENSE_NET.HEIGHT.REFINE",
}
# Old names and levels that a note was logged for.
_NOTED: set[tuple[str, int]] = set()
# Far above any config. References let a few lines of YAML stand for more than any memory holds.
_MOST_YAML_VALUES = 100_000
# Where projects add sections.
_SECTIONS_OF_PROJECTS = ("MODEL", "MODEL.DENSE_NET")
# A section so similar to one that exists is a spelling mistake; names of projects' sections are far from all others.
_MISSPELT = 0.8


# ---- YAML ------------------------------------------------------------------------------------------------


def safe_yaml(text: str, source: str) -> dict:
    """Return the mapping that YAML `text` of file `source` holds, read by a safe loader.

    Raises:
        InputError: not YAML, Python tags, no mapping, references that expand without end, keys that are no words.
    """
    try:
        tree = yaml.safe_load(text) or {}
    except Exception as error:  # PyYAML's own conversions of dates and numbers raise almost anything
        problem = getattr(error, "problem", None) or str(error)
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark else ""
        if isinstance(error, AttributeError | LookupError):
            problem = "a value does not have the form that its tag (!!) names"
        raise InputError(f"{source}: not a plain YAML config{line}: {problem}") from None
    if not isinstance(tree, dict):
        raise InputError(f"{source}: expected a YAML mapping of config keys, found {type(tree).__name__}.")
    if _expanded_size(tree, {}) > _MOST_YAML_VALUES:
        raise InputError(f"{source}: its references (& and *) expand to too many values; write them out.")
    for key in _keys(tree):
        if not isinstance(key, str):
            raise InputError(f"{source}: config keys are words, found {key!r}.")
    strange = _strange_value(tree)
    if strange is not None:
        raise InputError(
            f"{source}: {strange!r} is a {type(strange).__name__} in YAML; write it in quotes if it is text."
        )
    return tree


def _strange_value(value):
    """Return a date, set or bytes in `value`, which YAML reads unasked and no config has; None if there is none."""
    if isinstance(value, dict | list):
        parts = value.values() if isinstance(value, dict) else value
        return next((found for part in parts if (found := _strange_value(part)) is not None), None)
    return None if value is None or isinstance(value, str | bool | int | float) else value


def _expanded_size(value, known: dict[int, float]) -> float:
    """Return the number of values below `value` with references written out, counted without doing so."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        known[id(value)] = float("inf")  # what a value that contains itself finds
        parts = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_expanded_size(part, known) for part in parts)
    return known[id(value)]


def _keys(tree: dict):
    for key, value in tree.items():
        yield key
        if isinstance(value, dict):
            yield from _keys(value)


def read_chain(path: Path, above: tuple[Path, ...] = ()) -> list[dict]:
    """Return the trees of `path` and of its bases, the lowest base first, under today's names.

    A `_BASE_` is a path relative to its file, or else the name of a config (`fusiondet.config.config_file`).

    Args:
        above: the files that led here.

    Raises:
        InputError: see `safe_yaml`; a `_BASE_` that does not exist, or that leads back.
    """
    if path.resolve() in above:
        raise InputError(f"{path}: is its own _BASE_, by way of {above[-1]}.")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a text file, expected a YAML config.") from None
    tree = safe_yaml(text, str(path))
    base = tree.pop("_BASE_", None)
    rename_keys(tree, str(path))
    if base is None:
        return [tree]
    base_path = find_config(path.parent / str(base)) or find_config(str(base))
    if base_path is None:
        raise InputError(f"{path}: its _BASE_ {path.parent / str(base)} does not exist.")
    return [*read_chain(base_path, (*above, path.resolve())), tree]


def overlay(base: dict, top: dict) -> dict:
    """Return `base` with the values of `top` in it, mappings merged key by key."""
    both = dict(base)
    for key, value in top.items():
        nested = isinstance(value, dict) and isinstance(both.get(key), dict)
        both[key] = overlay(both[key], value) if nested else value
    return both


# ---- Names of the previous version -----------------------------------------------------------------------


def renamed_keys() -> dict[str, str]:
    """Return {name in the previous version: name now} of the core's keys and of the projects'."""
    return {**RENAMED_KEYS, **plugins.merged("renamed_keys")}


def rename_keys(tree: dict, source: str, level: int = logging.WARNING) -> None:
    """Give keys of `tree` that have the names of the previous version those of today, in place, with a note.

    Raises:
        InputError: a key is there under both of its names.
    """
    found = []
    for old, new in renamed_keys().items():
        *path, name = old.split(".")
        section = _section(tree, path)
        if section is None or name not in section:
            continue
        *new_path, new_name = new.split(".")
        target = tree
        for part in new_path:
            target = target.setdefault(part, {})
            if not isinstance(target, dict):
                raise InputError(
                    f"{source}: {old} is now {new}, but {part} is {target!r}, expected a section."
                )
        if new_name in target:
            raise InputError(f"{source}: {old} is now {new}, and both are there. Keep {new} alone.")
        target[new_name] = section.pop(name)
        found.append(old)
    _note_once(source, found, level)


def rename_words(words: list, source: str = "command line", note: bool = True) -> list:
    """Return KEY VALUE `words` with keys of the previous version under their names of today; `note`: log which."""
    names = renamed_keys()
    old = [word for word in words[::2] if word in names]
    if not old:
        return list(words)
    for key in old:
        if names[key] in words[::2]:
            raise InputError(
                f"{source}: {key} is now {names[key]}, and both are there. Keep {names[key]} alone."
            )
    if note:
        _note_once(source, old, logging.WARNING)
    return [names.get(word, word) if i % 2 == 0 else word for i, word in enumerate(words)]


def _note_once(source: str, old: list[str], level: int) -> None:
    """Log the new names of the `old` ones that no note of this process and level has named yet."""
    new = [key for key in old if (key, level) not in _NOTED]
    _NOTED.update((key, level) for key in new)
    if new:
        names = renamed_keys()
        _log.log(
            level,
            "%s: %s. This version still reads the old names, the next will not.",
            source, "; ".join(f"{key} is now {names[key]}" for key in new),
        )  # fmt: skip


def _section(tree: dict, path: list[str]) -> dict | None:
    for part in path:
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree if isinstance(tree, dict) else None


# ---- Complete configs, as they are saved -----------------------------------------------------------------


def drop_absent_sections(tree: dict, usual: CN, source: str) -> list[str]:
    """Drop, in place, what a complete config holds of projects that are not there; return the names of the sections.

    A config that someone wrote is not complete, and a section of it that does not exist is a spelling mistake. So is
    one of a complete config that is spelt nearly as one that exists.
    """
    if not usual.keys() <= tree.keys():
        return []
    dropped = []
    for name in _SECTIONS_OF_PROJECTS:
        section, known = _section(tree, name.split(".")), get_key(usual, name)
        for key in [k for k, value in (section or {}).items() if k not in known and isinstance(value, dict)]:
            if difflib.get_close_matches(key, known, cutoff=_MISSPELT):
                continue  # refused when it is merged, with the right name
            del section[key]
            dropped.append(f"{name}.{key}")
    if dropped:
        _log.warning(
            "%s: left out the config sections %s, whose projects are not in fusiondet/projects",
            source, ", ".join(dropped),
        )  # fmt: skip
    return dropped


def parse_stored(text: str, source: str) -> tuple[CN, list[str]]:
    """Return the config stored in checkpoint `source`, and the sections that were dropped; names are not checked.

    Raises:
        InputError: Python tags, a `_BASE_`, unknown keys, values of another type.
    """
    cfg = defaults()
    tree = safe_yaml(text, source)
    if "_BASE_" in tree:
        raise InputError(
            f"{source}: its config refers to another file by _BASE_, which a stored config never does."
        )
    rename_keys(tree, source, logging.INFO)
    dropped = drop_absent_sections(tree, cfg, source)
    merge(cfg, lambda: cfg.merge_from_other_cfg(CN(tree)), source)
    return cfg, dropped


# ---- Keys and values -------------------------------------------------------------------------------------


def merge(cfg: CN, merge_into, source: str) -> None:
    """Call `merge_into`, which merges something of `source` into `cfg`.

    Raises:
        InputError: an unknown key (the right ones are listed), or a value of another type.
    """
    try:
        merge_into()
    except (TypeError, AttributeError):  # Detectron2 looks for a key inside a value
        raise InputError(
            f"{source}: sets a key below one that is no section, such as SEED.A; or a section where a value belongs."
        ) from None
    except (MemoryError, RecursionError):
        raise InputError(f"{source}: a value is nested too deeply.") from None
    except (KeyError, AssertionError, ValueError) as error:
        message = str(error.args[0]) if error.args else str(error)
        section = message.rpartition("config key: ")[2]
        if "CfgNode" in message and _is_section(cfg, section):
            keys = ", ".join(f"{section}.{key}" for key in get_key(cfg, section))
            raise InputError(f"{source}: {section} is a section; set its keys one by one: {keys}.") from None
        if "Non-existent" not in message:
            whole = "<class 'float'> vs. <class 'int'>" in message
            hint = ". Write a whole number with a decimal point here: 40.0" if whole else ""
            raise InputError(f"{source}: {message}{hint}") from None
        key = message.split(":")[-1].strip()
        problem = f"{unknown_name('config key', key, _known_near(cfg, key))}{plugins.unavailable()}"
        raise InputError(f"{source}: {problem}") from None


def merge_words(cfg: CN, words: list, source: str = "command line") -> None:
    """Merge KEY VALUE `words` into `cfg`, in place.

    Raises:
        InputError: an odd number of words; see `merge`.
    """
    if len(words) % 2:
        raise InputError(
            f"config overrides come as KEY VALUE pairs, found {len(words)} words: {' '.join(map(str, words))}"
        )
    words = rename_words(list(words), source)
    merge(cfg, lambda: cfg.merge_from_list(words), source)


def _known_near(cfg: CN, dotted: str) -> list[str]:
    """Return the keys beside the misspelt one: those of the deepest section of `dotted` that exists."""
    section, prefix = cfg, []
    for part in dotted.split(".")[:-1]:
        if not isinstance(section.get(part), CN):
            break
        section, prefix = section[part], [*prefix, part]
    return [".".join([*prefix, key]) for key in section]


def flat(cfg: dict, prefix: str = "") -> dict:
    """Return {dotted key: value} of all keys, tuples as lists: YAML has no other."""
    values = {}
    for key, value in cfg.items():
        if isinstance(value, dict):
            values |= flat(value, f"{prefix}{key}.")
        else:
            values[prefix + key] = list(value) if isinstance(value, tuple) else value
    return values


def _is_section(cfg: CN, dotted: str) -> bool:
    try:
        return isinstance(get_key(cfg, dotted), CN)
    except (KeyError, TypeError):
        return False


def get_key(cfg: CN, dotted: str):
    """Return the value or section of `cfg` under a dotted key."""
    for part in dotted.split("."):
        cfg = cfg[part]
    return cfg


def set_key(cfg: CN, dotted: str, value) -> None:
    """Set the value of `cfg` under a dotted key."""
    *path, name = dotted.split(".")
    for part in path:
        cfg = cfg[part]
    cfg[name] = value
