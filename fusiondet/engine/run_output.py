"""OUTPUT_DIR of a run: of one run at a time, and untouched until everything that can be wrong was checked."""

import logging
import os
from pathlib import Path

import fusiondet.compat  # noqa: F401  (before detectron2)
from fusiondet.files import atomic_path, remove_debris
from fusiondet.locks import lock

from detectron2.utils import comm

_LOCK = ".lock"
_LOGGERS = ("fusiondet", "detectron2", "fvcore")


class RunOutput:
    """A context manager that locks a folder; `begin` then starts to write to it.

    What is logged before `begin` comes into log.txt, too. A run that is refused before leaves nothing.
    """

    def __init__(self, folder: str | Path, lines: list[str] = ()):
        """`lines`: of log.txt, by the process that prepared the run."""
        self.folder = Path(os.path.abspath(folder))
        self._log = _LogFile(lines if comm.is_main_process() else ())
        self._lock = None
        self._begun = False

    def __enter__(self):
        """Lock the folder, in the main process.

        Raises:
            InputError: another run works on it; or it cannot be made.
        """
        self._absent = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        if comm.is_main_process():
            self._lock = lock(self.folder / _LOCK, self.folder)
        for name in _LOGGERS:
            logging.getLogger(name).addHandler(self._log)
        return self

    def begin(self, config_yaml: str) -> None:
        """Remove what a killed run has left half-written, write config.yaml, and log to log.txt from now on."""
        comm.synchronize()  # a process whose checks are not done may still find something
        self._begun = True
        if comm.is_main_process():
            for folder in (self.folder, *self.folder.glob("inference/*/")):
                remove_debris(folder)
            with atomic_path(self.folder / "config.yaml") as temporary:
                temporary.write_text(config_yaml, encoding="utf-8")
        rank = comm.get_rank()
        self._log.open(self.folder / (f"log.txt.rank{rank}" if rank else "log.txt"))

    def __exit__(self, *_):
        for name in _LOGGERS:
            logging.getLogger(name).removeHandler(self._log)
        self._log.close()
        if self._lock is None:
            return
        # Before it is unlocked: another run may take it up then.
        (self.folder / _LOCK).unlink(missing_ok=True)
        if not self._begun:
            for path in self._absent:
                try:
                    path.rmdir()
                except OSError:  # another run writes there by now
                    break
        self._lock.close()
        self._lock = None


class _LogFile(logging.Handler):
    """Keeps lines until it is opened, then appends them to a file. A full disk stops no training for its log."""

    def __init__(self, lines):
        super().__init__()
        self.setFormatter(
            logging.Formatter("[%(asctime)s] %(name)s %(levelname)s: %(message)s", "%m/%d %H:%M:%S")
        )
        self._lines, self._file = list(lines), None

    def emit(self, record: logging.LogRecord) -> None:
        """Keep or append a record."""
        self._lines.append(self.format(record))
        self._flush()

    def open(self, path: Path) -> None:
        """Append all lines so far to `path`, and those that follow."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8", errors="backslashreplace")
        self._flush()

    def _flush(self) -> None:
        if self._file is None:
            return
        try:
            self._file.write("".join(f"{line}\n" for line in self._lines))
            self._file.flush()
        except OSError:
            pass
        self._lines.clear()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            try:
                self._file.close()
            except OSError:
                pass
            self._file = None
        super().close()


class KeptLog:
    """A context manager that yields a list, to which the lines are added that are logged meanwhile."""

    def __enter__(self) -> list[str]:
        self._log = _LogFile(())
        logging.getLogger("fusiondet").addHandler(self._log)
        return self._log._lines

    def __exit__(self, *_):
        logging.getLogger("fusiondet").removeHandler(self._log)
