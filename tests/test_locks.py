"""One run at a time writes an output, whatever becomes of the others."""

import errno
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading

from fusiondet import locks
from fusiondet.errors import InputError
from fusiondet.files import atomic_dir, atomic_path, parts_folder
from fusiondet.locks import lock, new_files, sole_writer

import pytest


def names(folder):
    return sorted(p.name for p in folder.iterdir())


@pytest.fixture(params=["flock", "no locks"])
def kind(request, monkeypatch):
    """With the locks of the file system, and where it has none."""
    if request.param == "no locks":

        def flock(*_):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(locks.fcntl, "flock", flock)
    return request.param


def other_process(folder, code, no_locks):
    """A process that holds a lock; returns when it has it."""
    patch = "locks.fcntl = None\n" if no_locks else ""
    program = (
        "import os, signal\nfrom fusiondet import locks\n"
        f"{patch}held = locks.lock({str(folder / 'lock')!r}, 'out')\nprint('ready', flush=True)\n{code}"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    return process


def test_the_second_run_is_told_who_is_at_work(tmp_path, kind):
    process = other_process(tmp_path, "signal.pause()", kind == "no locks")
    with pytest.raises(
        InputError, match=f"^out: another run.*process {process.pid} on {socket.gethostname()}.*Wait"
    ):
        lock(tmp_path / "lock", "out")
    process.kill()
    process.communicate()
    with lock(tmp_path / "lock", "out"):  # a stale lock is none
        assert (tmp_path / "lock").read_text() == f"process {os.getpid()} on {socket.gethostname()}"
        with pytest.raises(InputError, match=f"another run.*process {os.getpid()}"):
            lock(tmp_path / "lock", "out")
    lock(tmp_path / "lock", "out").close()


def test_another_machine_may_still_work_where_the_file_system_has_no_locks(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "fcntl", None)
    (tmp_path / "lock").write_text("process 1 on elsewhere")
    with pytest.raises(InputError, match="process 1 on elsewhere.*remove .*lock"):
        lock(tmp_path / "lock", "out")
    (tmp_path / "lock").unlink()
    with lock(tmp_path / "lock", "out"):
        pass
    assert (tmp_path / "lock").read_text() == ""


def test_forks_of_a_killed_process_do_not_hold_its_lock(tmp_path):
    code = "if not os.fork():\n    print(os.getpid(), flush=True)\nsignal.pause()"
    process = other_process(tmp_path, code, False)
    child = int(process.stdout.readline())
    try:
        process.kill()
        process.wait()
        with lock(tmp_path / "lock", "out"):
            os.kill(child, 0)  # it is still there
    finally:
        os.kill(child, signal.SIGKILL)
        process.communicate()


def test_a_fork_that_ends_does_not_unlock(tmp_path):
    with lock(tmp_path / "lock", "out"):
        process = multiprocessing.get_context("fork").Process(target=int)
        process.start()
        process.join()
        assert (tmp_path / "lock").read_text()
        with pytest.raises(InputError, match="another run"):
            lock(tmp_path / "lock", "out")


def test_many_that_begin_at_once_are_one_after_the_other(tmp_path):
    path, at_work, seen = tmp_path / "b.gpkg", [], []

    def work():
        for _ in range(30):
            try:
                with sole_writer(path):
                    at_work.append(1)
                    seen.append(len(at_work))
                    at_work.pop()
            except InputError as error:
                assert "another run" in str(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(seen) == {1} and names(tmp_path) == []


class TestSoleWriter:
    def test_what_is_half_written_is_in_the_hidden_folder(self, tmp_path):
        path = tmp_path / "b.gpkg"
        for atomic in (atomic_path, atomic_dir):
            with sole_writer(path), atomic(path) as temporary:
                assert parts_folder(path) in temporary.parents and names(tmp_path) == [".b.gpkg.parts"]
                temporary.write_text("x") if atomic is atomic_path else (temporary / "x").touch()
            assert names(tmp_path) == ["b.gpkg"]
            path.unlink() if path.is_file() else None

    def test_what_a_killed_run_left_goes_and_what_it_finished_stays(self, tmp_path):
        folder = parts_folder(tmp_path / "b.gpkg")
        (folder / ".b.gpkg.x1").mkdir(parents=True)
        (folder / ".b.gpkg.x1" / "rows.spool").touch()
        (folder / "block-1").touch()
        with sole_writer(tmp_path / "b.gpkg"):
            assert names(folder) == ["block-1", "lock"]
        assert names(folder) == ["block-1", "lock"]

    def test_one_of_several_outputs_is_enough_to_refuse(self, tmp_path):
        with sole_writer(tmp_path / "a", None, tmp_path / "b"):
            with (
                pytest.raises(InputError, match="b: another run"),
                sole_writer(tmp_path / "c", tmp_path / "b"),
            ):
                pass
            assert names(tmp_path) == [".a.parts", ".b.parts"]
        with sole_writer(tmp_path / "a", tmp_path / "." / "a"):  # the same one
            pass
        assert names(tmp_path) == []

    def test_others_have_nothing_to_do_with_it(self, tmp_path):
        with sole_writer(tmp_path / "b.gpkg"), atomic_path(tmp_path / "c.gpkg") as temporary:
            assert parts_folder(tmp_path / "b.gpkg") not in temporary.parents
            temporary.touch()
        assert names(tmp_path) == ["c.gpkg"]

    def test_where_nothing_can_be_made(self, tmp_path):
        (tmp_path / "a").touch()
        with pytest.raises(InputError, match="cannot be written there"), sole_writer(tmp_path / "a" / "b"):
            pass


def test_new_files_are_refused_where_one_is_there_or_just_came(tmp_path, monkeypatch):
    one, two = tmp_path / "one", tmp_path / "two"
    with new_files(one, None, two):
        with pytest.raises(InputError, match="two: another run"), new_files(two):
            pass
        two.touch()
    with pytest.raises(InputError, match="two: already exists"), new_files(one, two):
        pass
    with new_files(one, two, overwrite=True):
        pass
    two.unlink()
    # The other run ends between the look at the file and the lock.
    taken = locks._alone
    monkeypatch.setattr(locks, "_alone", lambda out: two.touch() or taken(out))
    with pytest.raises(InputError, match="two: already exists"), new_files(two):
        pass
    assert names(tmp_path) == ["two"]


def test_folders_made_for_an_output_that_is_not_written_are_removed(tmp_path):
    out = tmp_path / "a" / "b" / "heights.png"
    with pytest.raises(ZeroDivisionError), sole_writer(out):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with sole_writer(out):
        out.write_bytes(b"done")
    assert [path.name for path in out.parent.iterdir()] == ["heights.png"]
