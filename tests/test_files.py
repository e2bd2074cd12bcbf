"""Outputs appear whole or not at all; names in data stay in their folder."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from fusiondet.errors import InputError
from fusiondet.files import (
    atomic_dir,
    atomic_path,
    naming,
    parse_json,
    parts_folder,
    read_json,
    remove_debris,
    require_new,
    require_new_dir,
    safe_join,
    write_json,
)
from fusiondet.locks import sole_writer

import pytest


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_atomic_path_replaces_on_success_and_makes_the_folder(tmp_path):
    target = tmp_path / "new" / "a.txt"
    for text in ("one", "two"):
        with atomic_path(target) as temporary:
            assert temporary.suffix == ".txt" and temporary != target
            temporary.write_text(text)
        assert target.read_text() == text
    assert names(target.parent) == ["a.txt"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_full_disk_or_interrupt_leaves_the_old_file_and_nothing_else(tmp_path, error):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(type(error)), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise error
    assert target.read_text() == "old" and names(tmp_path) == ["a.txt"]


def test_atomic_dir_replaces_whole_folders(tmp_path):
    target = tmp_path / "set"
    for name in ("one", "two"):
        with atomic_dir(target) as fresh:
            (fresh / name).touch()
        assert names(target) == [name]
    with pytest.raises(OSError, match="No space"), atomic_dir(target) as fresh:
        (fresh / "three").touch()
        raise OSError(28, "No space left on device")
    assert names(target) == ["two"] and names(tmp_path) == ["set"]


def test_atomic_dir_gives_the_old_folder_back_when_the_last_step_fails(tmp_path, monkeypatch):
    target = tmp_path / "set"
    target.mkdir()
    (target / "old").touch()
    replace = os.replace

    def failing(source, destination):
        if (
            str(destination) == str(target)
            and os.path.basename(os.path.dirname(source)).startswith(".set.")
            and (os.path.basename(source) == "set")
        ):
            raise OSError(5, "Input/output error")
        replace(source, destination)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="Input/output"), atomic_dir(target):
        pass
    assert names(target) == ["old"] and names(tmp_path) == ["set"]


def test_killed_process_leaves_no_half_file(tmp_path):
    target = tmp_path / "a.json"
    code = (
        "import sys, time\nfrom fusiondet.files import atomic_path\n"
        f"with atomic_path({str(target)!r}) as t:\n"
        "    t.write_text('half')\n    print('ready', flush=True)\n    time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    time.sleep(0.05)
    assert not target.exists()
    assert all(name.startswith(".") for name in names(tmp_path))


def test_json_never_holds_nan(tmp_path):
    target = tmp_path / "a.json"
    write_json({"a": [1, None]}, target)
    assert json.loads(target.read_text()) == {"a": [1, None]}
    with pytest.raises(ValueError):
        write_json({"a": float("nan")}, target)
    assert read_json(target) == {"a": [1, None]} and names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[" * 200_000])
def test_not_json(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.json: not valid JSON"):
        read_json(path)


def test_json_missing_or_directory(tmp_path):
    with pytest.raises(InputError, match=r"b\.json: no such file"):
        read_json(tmp_path / "b.json")
    with pytest.raises(InputError, match="is a directory"):
        read_json(tmp_path)


def test_require_new(tmp_path):
    target = tmp_path / "new" / "a"
    assert require_new(target) == target
    target.parent.mkdir()
    target.touch()
    with pytest.raises(InputError, match="already exists.*`overwrite=True`"):
        require_new(target)
    assert require_new(target, overwrite=True) == target
    with pytest.raises(InputError, match="is a directory"):
        require_new(tmp_path, overwrite=True)


def test_require_new_dir(tmp_path):
    target = tmp_path / "set"
    assert require_new_dir(target, "annotations") == target
    target.mkdir()
    assert require_new_dir(target, "annotations") == target  # empty: as good as new
    (target / "annotations").mkdir()
    with pytest.raises(InputError, match="already exists.*`overwrite=True`"):
        require_new_dir(target, "annotations")
    assert require_new_dir(target, "annotations", overwrite=True) == target


def test_overwrite_never_replaces_what_is_no_earlier_output(tmp_path):
    (tmp_path / "thesis.txt").touch()
    os.mkfifo(tmp_path / "device")
    with pytest.raises(InputError, match="holds no 'annotations'.*not made by this tool"):
        require_new_dir(tmp_path, "annotations", overwrite=True)
    for name in ("thesis.txt", "device"):
        with pytest.raises(InputError, match="is not a directory"):
            require_new_dir(tmp_path / name, "annotations", overwrite=True)
    with pytest.raises(InputError, match="is not a file"):
        require_new(tmp_path / "device", overwrite=True)


def test_places_where_nothing_can_be_made(tmp_path):
    (tmp_path / "a").touch()
    for require in (require_new, lambda path: require_new_dir(path, "annotations")):
        with pytest.raises(InputError, match="cannot be made.*Choose another place"):
            require(tmp_path / "a" / "b" / "c")
    for atomic in (atomic_path, atomic_dir):
        with pytest.raises(InputError, match="cannot be written there"), atomic(tmp_path / "a" / "b"):
            pass
    assert names(tmp_path) == ["a"]


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="no /proc, where permissions promise too much")
def test_places_that_are_writable_by_permission_only():
    """Root may write to /proc, says the system; nobody can."""
    for require in (require_new, lambda path: require_new_dir(path, "annotations")):
        with pytest.raises(InputError, match=r"/proc/x\.gpkg: cannot be made"):
            require(Path("/proc/x.gpkg"))


def test_names_that_are_too_long_are_found_at_once(tmp_path):
    with pytest.raises(InputError, match="cannot be made in .*too long"):
        require_new(tmp_path / ("a" * 250 + ".gpkg"))
    assert require_new(tmp_path / ("a" * 200 + ".gpkg")) and names(tmp_path) == []


def test_the_look_at_a_place_leaves_nothing_that_the_next_one_does_not_remove(tmp_path, monkeypatch):
    path = tmp_path / "b.gpkg"
    with monkeypatch.context() as patched:
        patched.setattr(os, "rmdir", lambda _: None)  # the process is killed before it removes its probe
        require_new(path)
    assert names(tmp_path) == [".b.gpkg.parts"]
    with sole_writer(path):
        assert names(parts_folder(path)) == ["lock"]
    assert names(tmp_path) == []


def test_debris_of_killed_runs(tmp_path):
    own = [".model.pth.x1_abcde", ".set.12345678"]
    for name in (*own, ".cache.x1_abcde", ".git", ".model.pth.parts"):
        (tmp_path / name).mkdir()
    (tmp_path / own[0] / "model.pth").touch()
    (tmp_path / own[1] / "replaced").mkdir()
    (tmp_path / ".cache.x1_abcde" / "theirs").touch()
    (tmp_path / ".a.12345678").touch()
    remove_debris(tmp_path)
    assert names(tmp_path) == [".a.12345678", ".cache.x1_abcde", ".git", ".model.pth.parts"]


def test_a_full_disk_names_the_output_and_a_damaged_input_does_not(tmp_path):
    for atomic in (atomic_path, atomic_dir):
        with pytest.raises(OSError, match="No space") as caught, atomic(tmp_path / "a"):
            raise OSError(28, "No space left on device")
        assert caught.value.filename == str(tmp_path / "a")
        with pytest.raises(OSError, match="damaged") as caught, atomic(tmp_path / "a"):
            raise OSError("in.tif: damaged")
        assert caught.value.filename is None


def test_errors_without_a_name_get_one(tmp_path):
    for given, wanted in ((OSError(28, "x"), (28, str(tmp_path))), (OSError(5, "x", "f"), (5, "f"))):
        with pytest.raises(OSError) as caught, naming(tmp_path):
            raise given
        assert (caught.value.errno, caught.value.filename) == wanted


@pytest.mark.parametrize("name", ["a.tif", "rgb/a.tif", "rgb/a..b.tif", ".hidden/a.tif"])
def test_safe_names(tmp_path, name):
    assert safe_join(tmp_path, name) == tmp_path / name


@pytest.mark.parametrize(
    "name",
    ["", "/etc/passwd", "../a.tif", "rgb/../../a.tif", "/vsicurl/http://host/a.tif", "http://host/a.tif", "C:\\a.tif",
     "C:a.tif", "\\\\host\\share\\a.tif", "rgb\\..\\..\\a.tif", "a\0.tif"],
)  # fmt: skip
def test_names_that_point_outside(tmp_path, name):
    with pytest.raises(InputError, match="points outside its folder"):
        safe_join(tmp_path, name)


@pytest.mark.parametrize("digits", [308, 309, 400, 4299, 4301, 50_000])
def test_whole_numbers_of_any_length_are_read(tmp_path, digits):
    (tmp_path / "a.json").write_text('{"a": [1, ' + "7" * digits + ", 2.5]}")
    one, number, half = read_json(tmp_path / "a.json")["a"]
    assert (one, half) == (1, 2.5) and number == (int("7" * 308) if digits == 308 else float("inf"))


def test_long_numbers_below_the_limit_stay_whole():
    assert parse_json("[" + "1" * 40 + "]") == parse_json(b"[" + b"1" * 40 + b"]") == [int("1" * 40)]


def test_deep_json_is_refused(tmp_path):
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match="nested too deeply"):
        read_json(tmp_path / "a.json")


def test_halves_of_characters_are_no_file_names(tmp_path):
    with pytest.raises(InputError, match="outside its folder"):
        safe_join(tmp_path, "a\ud800.tif")
