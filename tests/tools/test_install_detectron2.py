"""Only the pinned archive is installed, nothing in it is run, and an installed Detectron2 is left alone."""

import base64
import hashlib
import io
import subprocess
import sys
import tarfile
import zipfile

import pytest

TOP = "detectron2-cdo-0.5"
FILES = {
    "setup.py": "open('/does/not/exist/it/ran', 'w')\nraise SystemExit('the set-up script ran')\n",
    "LICENSE": "Apache\n",
    "detectron2/__init__.py": "__version__ = '0.5'\n",
    "detectron2/model_zoo/configs/Base.yaml": "VERSION: 2\n",
    "detectron2/layers/csrc/vision.cpp": "int main() {}\n",
    "projects/PointRend/point_rend/__init__.py": "NAME = 'point_rend'\n",
    "projects/TensorMask/tensormask/__init__.py": "",
    "tests/test_it.py": "",
}


def _archive(path, files: dict[str, str]):
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(f"{TOP}/{name}")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
        link = tarfile.TarInfo(f"{TOP}/detectron2/link.py")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return path


@pytest.fixture
def installer(load_tool):
    return load_tool("install_detectron2")


@pytest.fixture
def sdist(tmp_path):
    return _archive(tmp_path / f"{TOP}.tar.gz", FILES)


@pytest.fixture
def pinned(installer, sdist, monkeypatch):
    """The made-up archive takes the place of the pinned one, and no Detectron2 is installed."""
    monkeypatch.setattr(installer, "SDIST_SHA256", hashlib.sha256(sdist.read_bytes()).hexdigest())
    monkeypatch.setattr(installer, "installed", lambda: None)
    return sdist


def test_wheel_holds_python_files_and_configs_and_nothing_else(installer, sdist, tmp_path):
    names = set(zipfile.ZipFile(installer.build_wheel(sdist, tmp_path)).namelist())
    assert {name for name in names if not name.startswith(installer.DIST_INFO)} == {
        "detectron2/__init__.py",
        "detectron2/model_zoo/configs/Base.yaml",
        "detectron2/projects/point_rend/__init__.py",
    }


def test_name_that_points_outside_is_left_out(installer, tmp_path):
    sdist = _archive(tmp_path / "out.tar.gz", {**FILES, "detectron2/../../outside.py": "print('outside')\n"})
    assert not [
        name for name in zipfile.ZipFile(installer.build_wheel(sdist, tmp_path)).namelist() if ".." in name
    ]


def test_record_lists_every_file_with_its_hash(installer, sdist, tmp_path):
    wheel = zipfile.ZipFile(installer.build_wheel(sdist, tmp_path))
    lines = wheel.read(f"{installer.DIST_INFO}/RECORD").decode().splitlines()
    recorded = {name: (digest, size) for name, digest, size in (line.rsplit(",", 2) for line in lines)}
    assert recorded.pop(f"{installer.DIST_INFO}/RECORD") == ("", "")
    assert recorded.keys() == set(wheel.namelist()) - {f"{installer.DIST_INFO}/RECORD"}
    for name, (digest, size) in recorded.items():
        content = wheel.read(name)
        expected = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        assert (digest, size) == (f"sha256={expected}", str(len(content)))


def test_pip_installs_the_wheel(installer, sdist, tmp_path):
    wheel = installer.build_wheel(sdist, tmp_path)
    target = tmp_path / "site"
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        "--target",
        str(target),
        str(wheel),
    ]
    subprocess.run(command, check=True)
    code = "import detectron2, detectron2.projects.point_rend as p; print(detectron2.__version__, p.NAME)"
    result = subprocess.run([sys.executable, "-c", code], cwd=target, capture_output=True, text=True)
    assert result.stdout == "0.5 point_rend\n", result.stderr


def test_download_checks_the_hash_and_runs_nothing(installer, pinned, tmp_path, monkeypatch, capfd):
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    (shelf / "detectron2_cdo-0.5.tar.gz").write_bytes(pinned.read_bytes())
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))

    (tmp_path / "right").mkdir()
    assert installer.verified(installer.download(tmp_path / "right")).name == "detectron2_cdo-0.5.tar.gz"
    assert "set-up script ran" not in "".join(capfd.readouterr())

    monkeypatch.setattr(installer, "SDIST_SHA256", "0" * 64)
    (tmp_path / "wrong").mkdir()
    with pytest.raises(installer.InstallFailed, match="--sdist"):
        installer.download(tmp_path / "wrong")
    assert "HASH" in "".join(capfd.readouterr()).upper()


def test_local_archive_is_installed_without_the_index(installer, pinned, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(installer, "_pip", lambda *arguments, **_: calls.append(arguments))
    assert installer.main(["--sdist", str(pinned)]) == 0
    (arguments,) = calls
    assert arguments[0] == "install" and "--no-index" in arguments and arguments[-1].endswith(".whl")
    assert "Installed Detectron2 0.5" in capsys.readouterr().out


def test_importable_detectron2_is_named_and_left_alone(installer, monkeypatch, capsys):
    monkeypatch.setattr(installer, "install", lambda *_: pytest.fail("installed although one is importable"))
    assert installer.main([]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Detectron2 ") and "detectron2 is importable; nothing to do." in out


def test_broken_detectron2_is_a_failure_with_a_way_out(installer, monkeypatch, tmp_path, capsys):
    (tmp_path / "detectron2").mkdir()
    (tmp_path / "detectron2" / "__init__.py").write_text("import missing_of_all_things\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "detectron2"]:
        monkeypatch.delitem(sys.modules, name)
    assert installer.main([]) == 1
    assert "missing_of_all_things" in (message := capsys.readouterr().err) and "pip uninstall" in message


def test_folder_named_detectron2_is_not_an_installed_one(installer, monkeypatch, tmp_path):
    (tmp_path / "detectron2").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for name in [name for name in sys.modules if name.partition(".")[0] == "detectron2"]:
        monkeypatch.delitem(sys.modules, name)
    assert installer.installed() is None


def test_missing_archive(installer, pinned, tmp_path, capsys):
    assert installer.main(["--sdist", str(tmp_path / "none.tar.gz")]) == 2
    assert "none.tar.gz: no such file" in capsys.readouterr().err


def test_another_archive_is_refused_with_both_hashes(installer, pinned, tmp_path, capsys):
    other = _archive(tmp_path / "other.tar.gz", {**FILES, "detectron2/evil.py": "print('evil')"})
    assert installer.main(["--sdist", str(other)]) == 2
    message = capsys.readouterr().err
    assert installer.SDIST_SHA256 in message and hashlib.sha256(other.read_bytes()).hexdigest() in message


@pytest.mark.parametrize("content", [b"not an archive", b"\x1f\x8b truncated"])
def test_what_is_no_archive_is_refused(installer, tmp_path, content):
    path = tmp_path / "text.tar.gz"
    path.write_bytes(content)
    with pytest.raises(installer.BadSdist, match="not a gzipped tar archive"):
        installer.build_wheel(path, tmp_path)


def test_archive_of_another_project_is_refused(installer, tmp_path):
    other = _archive(tmp_path / "other.tar.gz", {"README": "hello\n"})
    with pytest.raises(installer.BadSdist, match="no detectron2/__init__.py"):
        installer.build_wheel(other, tmp_path)


def test_pip_failure_says_what_else_can_be_done(installer, monkeypatch, capsys):
    monkeypatch.setattr(installer, "installed", lambda: None)
    monkeypatch.setattr(installer.subprocess, "call", lambda *_, **__: 1)
    assert installer.main([]) == 1
    assert "--sdist" in capsys.readouterr().err
