"""One file and one reader: what must hold whatever is in the file."""

import contextlib
import faulthandler
import os
import pathlib
import shutil
import sys
import tempfile
import time

from tests.fuzz import readers
from tests.fuzz.readers import Reader

LOADED, REFUSED = "loaded", "refused"
# Of processors, which other processes do not lengthen, and of the clock, after
# which Python prints where it hangs and ends the process.
MOST_SECONDS, HANGS_SECONDS = 2, 120
MOST_BYTES = 200e6
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_STATUS = pathlib.Path("/proc/self/status")
_RESET_PEAK = pathlib.Path("/proc/self/clear_refs")
# Python's names of what it does to files and what it starts; C libraries are
# not heard.
_CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.truncate")
_STARTS = (
    *("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen"),
    *("socket.connect", "socket.getaddrinfo", "socket.bind"),
)


class Trial:
    """A folder in which a reader is given files.

    Args:
        reader: The `Reader`.
        folder: An empty folder. The file that a killed process read last is
            left there.

    Example:

    >>> Trial(READERS["recipe.json"], tmp_path).attempt(b"[")
    'refused'
    """

    def __init__(self, reader: Reader, folder: pathlib.Path):
        self.reader, self.path = reader, folder / reader.file
        for name, content in reader.beside().items():
            (folder / name).write_bytes(content)
        self.watched = _Watched(folder)
        # The first time, libraries are imported and graphs traced.
        self.seeds = reader.seeds()
        for seed in self.seeds:
            self.path.write_bytes(seed)
            with contextlib.suppress(*reader.refusals):
                reader.read(self.path)

    def attempt(self, content: bytes) -> str:
        """Let the reader read a file.

        Args:
            content: What is in it.

        Returns:
            `"loaded"` or `"refused"`.

        Raises:
            AssertionError: if one of the promises does not hold.
            Exception: of any type that is not a refusal.
        """
        if self.reader.loads:
            readers.restore()
        self.path.write_bytes(content)
        before = _snapshot(self.path.parent)
        faulthandler.dump_traceback_later(HANGS_SECONDS, exit=True)
        try:
            with self.watched:
                error = self._read()
            if self.watched.excess:  # other threads may have taken it
                with self.watched:
                    error = self._read()
            assert not self.watched.excess, self.watched.excess
            self._check_refusal(error)
        finally:
            faulthandler.cancel_dump_traceback_later()
        assert _snapshot(self.path.parent) == before, "touched a file"
        return REFUSED if error else LOADED

    def clear(self) -> None:
        """Delete what is in the folder."""
        shutil.rmtree(self.path.parent)

    def _read(self):
        """The refusal, if it is one."""
        try:
            self.reader.read(self.path)
        except self.reader.refusals as error:
            return error
        return None

    def _check_refusal(self, error):
        if error is None:
            if self.reader.check:
                self.reader.check(self.path)
            return
        if self.reader.loads:
            readers.assert_untouched()
        if self.reader.refusals == (ValueError,):
            message = str(error)
            folder = str(self.path.parent)
            assert message.isprintable(), f"not one line: {message!r}"
            assert folder in message, f"names no file: {message}"


class _Watched:
    """A context in which memory, time and deeds are bounded."""

    def __init__(self, folder):
        self.inside, self.deeds = False, []
        # Keras unpacks files there; nothing must be left.
        self.temporary = folder / "temporary"
        self.temporary.mkdir()
        sys.addaudithook(self._hear)

    def _hear(self, event, arguments):
        if self.inside and self._counts(event, arguments):
            self.deeds.append((event, arguments))

    def _counts(self, event, arguments):
        if event == "open":
            path, _, flags = arguments
            changes = flags & _WRITES and not isinstance(path, int)
        else:
            # A folder that is open is one in which something counted.
            changes = event in _CHANGES and arguments[-1] in (-1, None)
        if changes:
            return not os.fspath(arguments[0]).startswith(str(self.temporary))
        return event in _STARTS

    def __enter__(self):
        self.deeds.clear()
        if _RESET_PEAK.exists():
            _RESET_PEAK.write_text("5")
        self.bytes, self.seconds = _peak_bytes(), time.process_time()
        tempfile.tempdir = str(self.temporary)
        self.inside = True

    def __exit__(self, kind, error, trace):
        self.inside, tempfile.tempdir = False, None
        seconds = time.process_time() - self.seconds
        taken = _peak_bytes() - self.bytes
        self.excess = (seconds > MOST_SECONDS) | (taken > MOST_BYTES) and (
            f"it took {seconds:.1f} s and {taken / 1e6:.0f} MB"
        )
        assert kind or not self.deeds, self.deeds


def _peak_bytes():
    """The most memory since it was reset; 0 where Linux' /proc is missing."""
    if not _STATUS.exists():
        return 0
    return int(_STATUS.read_text().partition("VmHWM:")[2].split()[0]) * 1024


def _snapshot(folder):
    """What is in a folder: names, and contents and times of files."""
    return {
        str(path): path.is_file()
        and (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
    }
