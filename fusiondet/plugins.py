"""Projects: what a folder of `fusiondet/projects` adds to the core, and the loader that finds it.

A project describes itself in its `__init__.py`, which holds `PROJECT = Project(...)` and imports neither torch nor
rasterio. References are text, "package.module" or "package.module:name", and are imported when one of the project's
networks, readers or subcommands is asked for. So a project whose libraries are not installed disturbs nobody else, and
a folder can be added or deleted without a change elsewhere.
"""

import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fusiondet.errors import InputError

_FOLDER = "fusiondet.projects"
# Project -> why it cannot be imported.
_UNAVAILABLE: dict[str, str] = {}


@dataclass(frozen=True)
class Project:
    """What one project adds.

    Attributes:
        add_config: reference of a function (cfg) that adds the project's config keys, `add_..._config`.
        check_config: reference of a function (cfg, defaults) that raises InputError for values of the project's keys
            that mean nothing or would be ignored. Its module imports no optional library.
        architectures: MODEL.META_ARCHITECTURE -> module whose import registers it.
        dense_networks: MODEL.DENSE_NET.NAME -> module whose import registers it.
        networks_with_branches: those of `dense_networks` that have a branch per modality.
        trainers: MODEL.META_ARCHITECTURE -> reference of its trainer, a subclass of `FusionTrainer`.
        converters: subcommand of `prepare_dataset.py` -> (module with `add_arguments` and `main`, help).
        annotation_kinds: "info.kind" of annotation files that hold no tiles -> what they hold and who reads them.
        shaping_keys: config keys and sections that decide which tensors a network has.
        renamed_keys: config key of the previous version -> its name now.
        headlines: keys of its scores that a reader looks for first.
        packages: module that may be missing -> what to install.
        name: of the folder; set by the loader.
    """

    add_config: str = ""
    check_config: str = ""
    architectures: Mapping[str, str] = field(default_factory=dict)
    dense_networks: Mapping[str, str] = field(default_factory=dict)
    networks_with_branches: tuple[str, ...] = ()
    trainers: Mapping[str, str] = field(default_factory=dict)
    converters: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    annotation_kinds: Mapping[str, str] = field(default_factory=dict)
    shaping_keys: tuple[str, ...] = ()
    renamed_keys: Mapping[str, str] = field(default_factory=dict)
    headlines: tuple[str, ...] = ()
    packages: Mapping[str, str] = field(default_factory=dict)
    name: str = ""

    def load(self, reference: str, wanted: str):
        """Import `reference`, "module" or "module:name", for `wanted`, e.g. "MODEL.DENSE_NET.NAME UNet".

        Raises:
            InputError: a library that it needs is not installed; the message says what to install.
        """
        module, _, name = reference.partition(":")
        try:
            loaded = importlib.import_module(module)
        except ModuleNotFoundError as error:
            missing = (error.name or "").partition(".")[0]
            if missing in ("", "fusiondet"):
                raise
            raise InputError(
                f"{wanted} is part of the project {self.name}, which needs the module {missing!r}: "
                f"pip install {self.packages.get(missing, missing)}"
            ) from error
        return getattr(loaded, name) if name else loaded


@functools.cache
def projects() -> tuple[Project, ...]:
    """Return the projects that are there, by name."""
    package = importlib.import_module(_FOLDER)
    found = []
    for info in sorted(pkgutil.iter_modules(package.__path__), key=lambda info: info.name):
        try:
            project = getattr(importlib.import_module(f"{_FOLDER}.{info.name}"), "PROJECT", None)
        except ImportError as error:
            _UNAVAILABLE[info.name] = f"it needs the module {error.name!r}"
            continue
        if project is not None:
            found.append(Project(**{**vars(project), "name": info.name}))
    return tuple(found)


def unavailable() -> str:
    """Return a sentence per project that cannot be imported, for messages about names that nobody has; else ""."""
    return "".join(f" The project {name} is not available: {why}." for name, why in _UNAVAILABLE.items())


def merged(attribute: str) -> dict:
    """Return the entries that all projects have in the mapping `attribute`."""
    return {key: value for project in projects() for key, value in getattr(project, attribute).items()}


def listed(attribute: str) -> tuple[str, ...]:
    """Return the entries that all projects have in the tuple `attribute`."""
    return tuple(entry for project in projects() for entry in getattr(project, attribute))


def owner(attribute: str, key: str) -> Project | None:
    """Return the project whose mapping `attribute` has `key`; None for names of the core and unknown ones."""
    return next((project for project in projects() if key in getattr(project, attribute)), None)


def load(attribute: str, key: str, label: str = ""):
    """Import what a project has in the mapping `attribute` under `key`; None where no project has it.

    Args:
        label: what `key` is, for the message of a missing library, e.g. "MODEL.DENSE_NET.NAME".

    Raises:
        InputError: see `Project.load`.
    """
    project = owner(attribute, key)
    if project is None:
        return None
    entry = getattr(project, attribute)[key]
    return project.load(entry if isinstance(entry, str) else entry[0], f"{label} {key}".strip())


def config_functions(attribute: str) -> list[Callable]:
    """Import every project's function that `attribute` refers to, "add_config" or "check_config".

    A project whose function cannot be imported is `unavailable`, and disturbs no config of the others.
    """
    functions = []
    for project in projects():
        if getattr(project, attribute):
            try:
                functions.append(project.load(getattr(project, attribute), f"{attribute} of {project.name}"))
            except InputError as error:
                _UNAVAILABLE[project.name] = str(error).rstrip(".")
    return functions
