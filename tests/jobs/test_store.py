"""Pieces on disk: whole, checked, of one fingerprint, and of one run at a time."""

import json
import pickle
import shutil
import signal
import subprocess
import sys

from fusiondet.errors import InputError
from fusiondet.files import parts_folder
from fusiondet.jobs.store import Store, changes

import pytest

FACTS = {"version": "1", "window_px": 100, "files": [["a.tif", 5], ["b.tif", 6]]}


@pytest.fixture
def out(tmp_path):
    return tmp_path / "city.gpkg"


def test_pieces_are_kept_for_the_next_run(out):
    with Store(out, FACTS) as store:
        store.save("block-01.bin", b"one")
        store.save("block-02.bin", b"two")
        store.save("block-02.bin", b"three")
    with Store(out, FACTS) as store:
        assert store.finished() == {"block-01.bin", "block-02.bin"}
        assert store.load("block-01.bin") == b"one" and store.load("block-02.bin") == b"three"
        assert store.load("block-03.bin") is None
        store.remove()
    assert list(out.parent.iterdir()) == []


def test_without_a_piece_nothing_is_left(out):
    with pytest.raises(KeyboardInterrupt), Store(out, FACTS) as store:
        (store.made / "half").write_text("x")
        raise KeyboardInterrupt
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize("damage", [b"", b"on", b"onf", b"one more"])
def test_a_damaged_piece_is_removed_to_be_made_again(out, damage):
    with Store(out, FACTS) as store:
        store.save("block-01.bin", b"one")
        (path,) = (store.folder / "pieces").iterdir()
        path.write_bytes(damage)
        assert store.load("block-01.bin") is None and store.finished() == set()
        store.save("block-01.bin", b"one")
        assert store.load("block-01.bin") == b"one"


def test_what_a_killed_run_left_half_written_is_removed(out):
    with Store(out, FACTS) as store:
        store.save("block-01.bin", b"one")
        for folder in (store.folder, store.folder / "pieces"):
            (folder / ".half").write_text("x")
            (folder / ".folder").mkdir()
    with Store(out, FACTS) as store:
        assert not [p for p in store.folder.rglob("*") if p.name.startswith(".")]
        assert store.load("block-01.bin") == b"one"


class TestResume:
    @pytest.fixture(autouse=True)
    def left(self, out):
        with Store(out, FACTS) as store:
            store.save("a.bin", b"a")

    def pieces(self, out, facts=FACTS, **how):
        with Store(out, facts, **how) as store:
            return store.finished()

    def test_by_default_where_the_fingerprint_is_the_same(self, out):
        assert self.pieces(out) == {"a.bin"}
        assert self.pieces(out, {**FACTS, "window_px": 50}) == set()

    def test_refused_where_nothing_is_asked_for(self, out):
        with pytest.raises(InputError, match=r"\.city\.gpkg\.parts.* 1 .*`resume=True`.*`overwrite=True`"):
            self.pieces(out, resume=False)
        assert self.pieces(out, resume=True) == {"a.bin"}
        assert self.pieces(out, resume=False, overwrite=True) == set()

    def test_another_fingerprint_is_refused_by_its_first_difference(self, out):
        other = {**FACTS, "window_px": 50, "files": [["a.tif", 5], ["b.tif", 7]]}
        message = r"window_px was 100, is 50; files was \[.b.tif., 6\], is \[.b.tif., 7\]"
        with pytest.raises(InputError, match=message):
            self.pieces(out, other, resume=True)
        assert self.pieces(out, resume=True) == {"a.bin"}, "nothing was touched"

    def test_the_folder_of_another_version_is_refused_or_replaced(self, out):
        folder = parts_folder(out)
        (folder / "fingerprint.json").rename(folder / "plan.json")
        for resume in (True, False):
            with pytest.raises(InputError, match="another version.*`overwrite=True`"):
                self.pieces(out, resume=resume)
        assert (folder / "plan.json").exists()
        assert self.pieces(out, resume=False, overwrite=True) == set() and not folder.exists()

    def test_the_folder_of_another_version_without_anything_finished_is_cleared(self, out):
        folder = parts_folder(out)
        shutil.rmtree(folder)
        folder.mkdir()
        (folder / "plan.json").write_text("{}")
        for resume in (False, True):
            assert self.pieces(out, resume=resume) == set() and not folder.exists()
            folder.mkdir()
            (folder / "plan.json").write_text("{}")
        (folder / "block-000000.parquet").write_bytes(b"finished")
        with pytest.raises(InputError, match="another version.*`overwrite=True`"):
            self.pieces(out, resume=True)

    def test_a_folder_that_was_killed_as_it_got_its_place_is_begun_again(self, out):
        (parts_folder(out) / "made").rename(out)
        assert self.pieces(out) == set()


def test_a_folder_is_published_whole_in_the_place_of_the_old_one(tmp_path):
    out = tmp_path / "data"
    for content in ("old", "new"):
        with Store(out, FACTS) as store:
            (store.made / "a.txt").write_text(content)
            store.save("a.bin", b"a")
            store.publish()
        assert [p.name for p in tmp_path.iterdir()] == ["data"]
    assert (out / "a.txt").read_text() == "new"


def test_another_process_may_save(out):
    with Store(out, FACTS) as store:
        worker = pickle.loads(pickle.dumps(store))
        worker.save("b.bin", b"b")
        worker.close()
        assert store.load("b.bin") == b"b" and store.finished() == {"b.bin"}


class TestLock:
    def test_a_second_run_is_refused(self, out):
        with Store(out, FACTS) as store:
            store.save("a.bin", b"a")
            for how in ({}, {"resume": True}, {"resume": False, "overwrite": True}):
                with pytest.raises(InputError, match="city.gpkg: another run .*process"):
                    Store(out, FACTS, **how)
            assert store.load("a.bin") == b"a"
        with Store(out, FACTS) as store:
            store.remove()
            with Store(out, FACTS):
                pass
        assert list(out.parent.iterdir()) == []

    def test_a_killed_process_holds_it_no_more(self, out):
        code = (
            "import os, signal\nfrom fusiondet.jobs.store import Store\n"
            f"store = Store({str(out)!r}, {json.dumps(FACTS)})\nstore.save('a.bin', b'a')\n"
            "print('ready', flush=True)\nsignal.pause()\n"
        )
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "ready\n"
        with pytest.raises(InputError, match=f"another run .*{process.pid}"):
            Store(out, FACTS)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        with Store(out, FACTS) as store:
            assert store.finished() == {"a.bin"}

    def test_a_place_that_cannot_be_written_to(self, tmp_path):
        (tmp_path / "file").touch()
        for place in (tmp_path / "file" / "out", "/proc/out"):
            with pytest.raises(InputError, match=f"{place}: cannot be written there"):
                Store(place, FACTS)


def test_a_full_disk_names_the_piece(out, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with Store(out, FACTS) as store:
        monkeypatch.setattr("os.replace", full)
        with pytest.raises(OSError, match="No space") as caught:
            store.save("a.bin", b"a")
        assert "a-" in caught.value.filename and list((store.folder / "pieces").iterdir()) == []
        monkeypatch.undo()


def test_changes_say_what_was_and_what_is():
    assert changes({"a": 1, "b": 2}, {"a": 1, "c": [3]}) == ["b was 2, is null", "c was null, is [3]"]
    long = changes({"a": "x" * 100 + "1"}, {"a": "x" * 100 + "2"})[0]
    assert len(long) < 200 and '1", is' in long and long.endswith('2"')
