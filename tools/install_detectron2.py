#!/usr/bin/env python3
"""Install Detectron2, unless one is importable already: then say which, and change nothing.

What is installed is the Python part of v0.5. Upstream publishes no releases on the Python package index; the index
holds the v0.5 sources as `detectron2-cdo`, a third-party upload. Its Python files are upstream's, byte for byte,
and the archive is accepted only with the SHA-256 below. It lacks the C++ sources that its own set-up script
compiles, so that script is never run: the archive's Python files are packed into a wheel here, and pip installs the
wheel. `fusiondet.compat` supplies what v0.5 needs on today's torch.

Uses nothing but Python and pip, with pip's own configuration of index, proxy and certificates.
Exit status: 0 a Detectron2 is there, 1 it could not be installed, 2 the given file cannot be used.
"""

import argparse
import base64
import hashlib
import importlib.util
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

PROJECT, VERSION = "detectron2-cdo", "0.5"
SDIST_SHA256 = "53c9e79e9cc943e80419c588ea44b5479507a8628ed14a4e06bd093e29311b18"
LICENSE = "Apache-2.0"
DIST_INFO = f"detectron2_cdo-{VERSION}.dist-info"
WHEEL_NAME = f"detectron2_cdo-{VERSION}-py3-none-any.whl"

# Folder in the archive -> folder in the wheel, as upstream's setup.py maps them.
PACKAGES = {
    "detectron2": "detectron2",
    "projects/PointRend/point_rend": "detectron2/projects/point_rend",
    "projects/DeepLab/deeplab": "detectron2/projects/deeplab",
    "projects/Panoptic-DeepLab/panoptic_deeplab": "detectron2/projects/panoptic_deeplab",
}
REQUIRES = (
    "Pillow>=7.1",
    "matplotlib",
    "pycocotools>=2.0.2",
    "termcolor>=1.1",
    "yacs>=0.1.6",
    "tabulate",
    "cloudpickle",
    "tqdm>4.29.0",
    "tensorboard",
    "fvcore>=0.1.5",
    "iopath>=0.1.7",
    "omegaconf>=2.1",
    "hydra-core>=1.1",
)


class BadSdist(Exception):
    """The archive is missing, is not the pinned one, or does not hold what it should."""


class InstallFailed(Exception):
    """pip could not download or install."""


def installed() -> str | None:
    """Version and folder of the importable Detectron2; None when there is none.

    Raises:
        InstallFailed: one is there and cannot be imported.
    """
    spec = importlib.util.find_spec("detectron2")
    if spec is None or spec.origin is None:  # no origin: merely a folder of that name
        return None
    try:
        import detectron2
    except Exception as error:
        raise InstallFailed(
            f"a Detectron2 in {Path(spec.origin).parent} cannot be imported ({type(error).__name__}: {error}). "
            "Install what it misses (`make setup` does), or remove it with `pip uninstall detectron2 detectron2-cdo`."
        ) from error
    return f"{detectron2.__version__} in {Path(spec.origin).parent}"


def verified(sdist: Path) -> Path:
    """`sdist` itself, if it is the pinned archive.

    Raises:
        BadSdist: no such file, or another SHA-256.
    """
    if not sdist.is_file():
        raise BadSdist(f"{sdist}: no such file. Give the path of detectron2-cdo-0.5.tar.gz.")
    found = hashlib.sha256(sdist.read_bytes()).hexdigest()
    if found != SDIST_SHA256:
        raise BadSdist(
            f"{sdist}: SHA-256 is {found}, expected {SDIST_SHA256}. It is not the pinned v0.5 source archive."
        )
    return sdist


def build_wheel(sdist: Path, directory: Path) -> Path:
    """Pack the Python files and model-zoo configs of the archive `sdist` into a wheel in `directory`; run none of it.

    Raises:
        BadSdist: not a gzipped tar archive, or one without a detectron2 package.
    """
    files = _package_files(sdist)
    files[f"{DIST_INFO}/METADATA"] = _metadata().encode()
    files[f"{DIST_INFO}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: fusiondet\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    files[f"{DIST_INFO}/top_level.txt"] = b"detectron2\n"
    files[f"{DIST_INFO}/RECORD"] = _record(files).encode()
    wheel = directory / WHEEL_NAME
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return wheel


def _package_files(sdist: Path) -> dict[str, bytes]:
    files = {}
    try:
        with tarfile.open(sdist, "r:gz") as archive:
            for member in archive:
                name = _name_in_wheel(member.name) if member.isfile() else None
                if name is not None:
                    files[name] = archive.extractfile(member).read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise BadSdist(f"{sdist}: not a gzipped tar archive ({error}).") from error
    if "detectron2/__init__.py" not in files:
        raise BadSdist(
            f"{sdist}: holds no detectron2/__init__.py, so it is not a source archive of Detectron2."
        )
    return files


def _name_in_wheel(member: str) -> str | None:
    """Name in the wheel for `<top folder>/<path>` in the archive; None for what is left out."""
    path = member.partition("/")[2]
    if path == "LICENSE":
        return f"{DIST_INFO}/LICENSE"
    if not path.endswith((".py", ".yaml")) or ".." in path.split("/"):
        return None
    for source, target in PACKAGES.items():
        if path.startswith(source + "/"):
            return target + path[len(source) :]
    return None


def _metadata() -> str:
    head = f"Metadata-Version: 2.1\nName: {PROJECT}\nVersion: {VERSION}\nLicense: {LICENSE}\n"
    summary = "Summary: Detectron2 v0.5 (Facebook AI Research), Python part only\nRequires-Python: >=3.7\n"
    return head + summary + "".join(f"Requires-Dist: {requirement}\n" for requirement in REQUIRES)


def _record(files: dict[str, bytes]) -> str:
    """The wheel's list of files with their hashes, by which pip installs and uninstalls."""
    lines = []
    for name, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(content)}\n")
    return "".join(lines) + f"{DIST_INFO}/RECORD,,\n"


# pip asks a source archive for its metadata even when it only downloads it, and would run the archive's setup.py for
# that. Under the name of setuptools, this answers instead.
_ANSWER_INSTEAD_OF_SETUPTOOLS = """
import os

class __legacy__:
    @staticmethod
    def get_requires_for_build_wheel(config_settings=None):
        return []

    @staticmethod
    def prepare_metadata_for_build_wheel(directory, config_settings=None):
        os.makedirs(os.path.join(directory, {dist_info!r}))
        with open(os.path.join(directory, {dist_info!r}, "METADATA"), "w") as f:
            f.write({metadata!r})
        return {dist_info!r}
"""


def download(directory: Path) -> Path:
    """Let pip fetch the pinned archive into `directory`, hash-checked, without running anything in it.

    Raises:
        InstallFailed: pip failed; its own message has been printed.
    """
    answers = directory / "answers"
    (answers / "setuptools").mkdir(parents=True)
    (answers / "setuptools" / "__init__.py").touch()
    text = _ANSWER_INSTEAD_OF_SETUPTOOLS.format(dist_info=DIST_INFO, metadata=_metadata())
    (answers / "setuptools" / "build_meta.py").write_text(text)
    requirement = directory / "requirement.txt"
    requirement.write_text(f"{PROJECT}=={VERSION} --hash=sha256:{SDIST_SHA256}\n")
    options = "--quiet --no-deps --no-cache-dir --no-binary :all: --no-build-isolation --use-pep517 --require-hashes"
    arguments = [*options.split(), "--dest", str(directory), "--requirement", str(requirement)]
    _pip("download", *arguments, python_path=str(answers))
    return next(directory.glob("*.tar.gz"))


def _pip(*arguments: str, python_path: str | None = None) -> None:
    env = dict(os.environ)
    if python_path:
        # The second variable keeps setuptools' start-up file from importing the real one first.
        env.update(PYTHONPATH=python_path, SETUPTOOLS_USE_DISTUTILS="stdlib")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    if subprocess.call(command, env=env, stdin=subprocess.DEVNULL) != 0:
        raise InstallFailed(
            f"`pip {arguments[0]}` failed, see above. Without access to the package index, fetch "
            f"{PROJECT} {VERSION} (.tar.gz) elsewhere and pass it with --sdist; "
            "or install upstream's Detectron2 yourself."
        )


def install(sdist: Path | None = None) -> None:
    """Install the Python part of Detectron2 v0.5 from the local archive `sdist`, or from the package index.

    Raises:
        BadSdist, InstallFailed: nothing was installed.
    """
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary).resolve()  # pip runs elsewhere: relative paths would not hold
        sdist = verified(sdist or download(directory))
        _pip("install", "--quiet", "--no-deps", "--no-index", str(build_wheel(sdist, directory)))


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sdist",
        type=Path,
        metavar="PATH",
        help=f"local copy of {PROJECT}-{VERSION}.tar.gz, hash-checked too (default: from the package index)",
    )
    args = parser.parse_args(arguments)
    try:
        found = installed()
        if found:
            print(f"Detectron2 {found} is importable; nothing to do.")
            return 0
        install(args.sdist)
    except BadSdist as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except InstallFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"Installed Detectron2 {VERSION}, Python part, for {sys.executable}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
