"""Nothing half-written, nothing lost."""

import os
import pathlib
import socket
import subprocess
import sys

import pytest

from keras_resnext.files import check_free
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
