"""Nothing half-written, nothing lost."""

import errno
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import threading

import pytest

from keras_resnext import files
from keras_resnext.files import add_line
from keras_resnext.files import check_free
from keras_resnext.files import check_not_held
from keras_resnext.files import clear_up
from keras_resnext.files import held
from keras_resnext.files import staged


def test_file_appears_whole(tmp_path):
    target = tmp_path / "deep" / "x.txt"
    with staged(target) as new:
        new.write_text("new")
        assert not target.exists()
        assert new.suffix == ".txt"
    assert target.read_text() == "new"
    assert [path.name for path in target.parent.iterdir()] == ["x.txt"]


def test_existing_things_are_not_replaced_unasked(tmp_path):
    target = tmp_path / "x.txt"
    target.write_text("old")
    with (
        pytest.raises(
            FileExistsError, match="`overwrite` is true; .*x.txt exists"
        ),
        staged(target),
    ):
        pytest.fail("started writing")
    assert target.read_text() == "old"
    check_free(tmp_path / "y.txt", overwrite=False)


def test_what_came_meanwhile_is_not_replaced(tmp_path):
    target = tmp_path / "x.txt"

    def write():
        with staged(target) as new:
            new.write_text("new")
            target.write_text("another's")

    with pytest.raises(FileExistsError, match="x.txt exists"):
        write()
    assert target.read_text() == "another's"
    assert [path.name for path in tmp_path.iterdir()] == ["x.txt"]


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "x").write_text("old")
    with pytest.raises(NotADirectoryError, match="must be in a folder; .*x"):
        check_free(tmp_path / "x" / "deep" / "y", overwrite=True)


@pytest.mark.parametrize("folder", [False, True])
def test_replacing(tmp_path, folder):
    target = tmp_path / "x"
    for content in ("old", "new"):
        with staged(target, overwrite=True) as new:
            if folder:
                new.mkdir()
            (new / "a" if folder else new).write_text(content)
    assert (target / "a" if folder else target).read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("folder", [False, True])
def test_failure_leaves_what_was_there(tmp_path, folder):
    target = tmp_path / "x"
    if folder:
        target.mkdir()
    (target / "a" if folder else target).write_text("old")

    def write_half():
        with staged(target, overwrite=True) as new:
            new.write_text("half")
            raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        write_half()
    assert (target / "a" if folder else target).read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("moment", ["while writing", "between renames"])
def test_what_a_killed_process_left_is_cleared_up(tmp_path, moment):
    code = """
import os, pathlib, signal, sys
from keras_resnext.files import staged

target, moment = sys.argv[1:]
rename = pathlib.Path.rename

def killed(self, to):
    rename(self, to)
    os.kill(os.getpid(), signal.SIGKILL)

with staged(target, overwrite=True) as new:
    new.mkdir()
    (new / "a").write_text("new")
    if moment == "while writing":
        os.kill(os.getpid(), signal.SIGKILL)
    pathlib.Path.rename = killed
"""
    target = tmp_path / "x"
    target.mkdir()
    (target / "a").write_text("old")
    command = [sys.executable, "-c", code, str(target), moment]
    assert subprocess.run(command).returncode == -9
    assert target.exists() == (moment == "while writing")
    assert len(list(tmp_path.iterdir())) > 1
    check_free(tmp_path / "another", overwrite=False)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (target / "a").read_text() == "old"


def test_a_link_to_a_folder_is_replaced(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a").write_text("old")
    (tmp_path / "x").symlink_to("real")
    with staged(tmp_path / "x", overwrite=True) as new:
        new.mkdir()
    assert not (tmp_path / "x").is_symlink()
    assert (tmp_path / "real" / "a").read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} == {"real", "x"}


def test_a_link_to_nothing_is_there_too(tmp_path):
    link = tmp_path / "x"
    link.symlink_to(tmp_path / "elsewhere" / "model.keras")
    for check in (check_free, staged):
        with pytest.raises(FileExistsError, match="x exists"):
            check(link, overwrite=False).__enter__()
    assert link.is_symlink()
    with pytest.raises(NotADirectoryError, match="x is a link to nothing"):
        check_free(link / "model.keras", overwrite=True)


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("target", ["file", "nothing"])
def test_a_link_itself_is_replaced(tmp_path, folder, target):
    (tmp_path / "file").write_text("of somebody else")
    (tmp_path / "x").symlink_to(target)
    with staged(tmp_path / "x", overwrite=True) as new:
        new.mkdir() if folder else new.write_text("new")
    assert not (tmp_path / "x").is_symlink()
    assert (tmp_path / "x").is_dir() == folder
    assert (tmp_path / "file").read_text() == "of somebody else"
    assert {path.name for path in tmp_path.iterdir()} == {"file", "x"}


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path):
    (tmp_path / "x").write_text("old")

    def write():
        with staged(tmp_path / "x", overwrite=True) as new:
            new.write_text("half")
            # What a write raises, which names no file.
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space left on device: '.*/x'"):
        write()
    assert (tmp_path / "x").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_line_that_finds_a_full_disk_names_the_file():
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        add_line("/dev/full", "half")


def test_a_folder_has_one_writer(tmp_path):
    folder = tmp_path / "deep" / "x"
    with held(folder, argument="workdir") as check:
        check()
        this = f"process {os.getpid()} on {socket.gethostname()} since 2"
        for again in (
            lambda: held(folder, argument="output").__enter__(),
            lambda: check_not_held(folder, argument="output"),
        ):
            with pytest.raises(
                BlockingIOError, match=f"`output` must be .*/x is .*{this}"
            ):
                again()
        check()  # still this process'
        (folder / "a").write_text("")
    check_not_held(folder, argument="output")
    assert [path.name for path in folder.iterdir()] == ["a"]
    with held(folder, argument="workdir") as check:
        check()


def test_a_folder_in_which_nothing_was_written_leaves_no_trace(tmp_path):
    with held(tmp_path / "deep" / "x", argument="workdir"):
        pass
    assert not list(tmp_path.iterdir())
    check_not_held(tmp_path / "deep" / "x", argument="workdir")
    with held(tmp_path, argument="workdir"):
        pass
    assert tmp_path.is_dir()  # it was there before


def test_a_lock_without_a_holder_is_free(tmp_path):
    (tmp_path / ".keras_resnext.lock").write_text(
        "process 1 on another host since 2020\n"
    )
    check_not_held(tmp_path, argument="workdir")
    with held(tmp_path, argument="workdir") as check:
        check()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("linked", [False, True])
def test_a_lock_overwrites_no_other_file(tmp_path, linked):
    """A run that was downloaded may have any file, or link, in its place."""
    other = tmp_path / "other.txt"
    other.write_text("important")
    folder = tmp_path / "run"
    folder.mkdir()
    lock = folder / ".keras_resnext.lock"
    if linked:
        lock.symlink_to(other)
    else:
        shutil.copy(other, lock)
    for take in (
        lambda: check_not_held(folder, argument="workdir"),
        lambda: held(folder, argument="workdir").__enter__(),
    ):
        with pytest.raises(FileExistsError, match="must be the lock of this"):
            take()
    assert other.read_text() == lock.read_text() == "important"


@pytest.mark.parametrize("moved", [False, True])
def test_a_folder_that_vanishes_is_noticed(tmp_path, moved):
    folder = tmp_path / "x"
    with held(folder, argument="workdir") as check:
        folder.rename(tmp_path / "y") if moved else shutil.rmtree(folder)
        with pytest.raises(FileNotFoundError, match="x was deleted or moved"):
            check()
        with held(folder, argument="workdir") as theirs:
            with pytest.raises(BlockingIOError, match="x was taken over by"):
                check()
            theirs()


@pytest.mark.parametrize("relative", [False, True])
def test_a_folder_that_vanishes_does_not_come_back(
    tmp_path, monkeypatch, relative
):
    """With the one file that was being written."""
    monkeypatch.chdir(tmp_path)
    folder = pathlib.Path("x") if relative else tmp_path / "x"

    def write():
        with held(folder, argument="workdir"):
            shutil.rmtree(folder)
            with staged(folder / "a") as new:
                new.write_text("a")

    with pytest.raises(FileNotFoundError, match="x was deleted or moved"):
        write()
    assert not folder.exists()
    with staged(folder / "a") as new:  # no longer held
        new.write_text("a")


def test_what_a_process_left_when_it_was_done_is_cleared_up(tmp_path):
    host = socket.gethostname()
    lock = tmp_path / ".keras_resnext.lock"
    lock.write_text("process 99999999 on another host since 2020\n")
    (tmp_path / f".x.staged-{host}-99999999-abc").mkdir()
    clear_up(tmp_path)
    assert not list(tmp_path.iterdir())
    clear_up(tmp_path)
    assert not list(tmp_path.iterdir())
    clear_up(tmp_path / "missing")
    with held(tmp_path, argument="workdir") as check:
        clear_up(tmp_path)
        check()


def test_without_locks_the_first_process_notices_the_second(
    tmp_path, monkeypatch
):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    with (
        held(tmp_path, argument="workdir") as check,
        held(tmp_path, argument="workdir") as theirs,
    ):
        theirs()
        with pytest.raises(
            BlockingIOError, match="taken over by process .*, while this"
        ):
            check()
    monkeypatch.setattr(files, "fcntl", None)  # as on Windows
    with held(tmp_path, argument="workdir") as check:
        check()
    assert not list(tmp_path.iterdir())


def test_many_holders_one_after_the_other(tmp_path):
    """Each deletes the lock's file, which others may just have opened."""
    inside, most, refused = [], [], []

    def hold():
        for _ in range(200):
            try:
                with held(tmp_path, argument="workdir") as check:
                    inside.append(1)
                    most.append(len(inside))
                    check()
                    inside.pop()
            except BlockingIOError as error:
                refused.append(error)

    threads = [threading.Thread(target=hold) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1}
    assert len(most) + len(refused) == 800


@pytest.mark.integration
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_died_holds_nothing(tmp_path, number):
    code = (
        "import sys, time\n"
        "from keras_resnext.files import held\n"
        "with held(sys.argv[1], argument='workdir'):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(100)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE
    )
    try:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(
            BlockingIOError, match=f"in use by process {process.pid} on"
        ):
            check_not_held(tmp_path, argument="workdir")
        process.send_signal(number)
        assert process.wait() == -number
    finally:
        process.kill()
        process.communicate()
    assert (tmp_path / ".keras_resnext.lock").exists()
    with held(tmp_path, argument="workdir") as check:
        check()
    assert not list(tmp_path.iterdir())


def test_what_is_not_left_by_processes_of_this_machine_stays(tmp_path):
    host = socket.gethostname()
    names = {
        f".x.staged-{host}-{os.getpid()}-abc",  # its process runs
        f".x.staged-{host}-99999999-4000-abc",  # of a host of such a name
        f".x.staged-other{host}-99999999-abc",
        f".x.staged-{host}-999999999999999999-abc",
        ".x.staged-",
    }
    for name in names:
        (tmp_path / name).mkdir()
    (tmp_path / f".x.staged-{host}-99999999-abc").mkdir()
    check_free(tmp_path / "y", overwrite=False)
    assert {path.name for path in tmp_path.iterdir()} == names


@pytest.mark.parametrize("moment", ["aside", "in place"])
def test_interrupted_replacement_keeps_the_old_folder(
    tmp_path, monkeypatch, moment
):
    """Ctrl-C right after, or right before, the old folder was moved."""
    target = tmp_path / "x"
    target.mkdir()
    (target / "a").write_text("old")
    rename = pathlib.Path.rename

    def interrupted(self, to):
        if moment == "aside" and self == target:
            rename(self, to)
            raise KeyboardInterrupt
        new_one = to == target and not self.name.endswith(".old")
        if moment == "in place" and new_one:
            raise KeyboardInterrupt
        return rename(self, to)

    monkeypatch.setattr(pathlib.Path, "rename", interrupted)

    def replace():
        with staged(target, overwrite=True) as new:
            new.mkdir()

    with pytest.raises(KeyboardInterrupt):
        replace()
    assert (target / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("old_is_folder", [False, True])
def test_a_file_and_a_folder_replace_each_other(tmp_path, old_is_folder):
    target = tmp_path / "x"
    for folder in (old_is_folder, not old_is_folder):
        with staged(target, overwrite=True) as new:
            new.mkdir() if folder else new.write_text("")
    assert target.is_dir() != old_is_folder
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_folder_comes_back_when_the_new_one_is_missing(tmp_path):
    target = tmp_path / "x"
    target.mkdir()
    (target / "a").write_text("old")
    with pytest.raises(FileNotFoundError), staged(target, overwrite=True):
        pass  # nothing was written
    assert (target / "a").read_text() == "old"


@pytest.mark.parametrize("mask", [0o022, 0o027])
def test_files_are_as_readable_as_any_other(tmp_path, mask):
    before = os.umask(mask)
    try:
        with staged(tmp_path / "x") as new:
            new.touch(0o600)
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o666 & ~mask
