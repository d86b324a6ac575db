"""A disk of a few pages, or a read-only one, for a command to write to."""

import subprocess

import pytest


def run_on_disk(disk, script, command):
    """Run a script that mounts a disk at $0 and runs the command as "$@".

    Nobody else sees the disk.

    Args:
        disk: Where the disk will be mounted; created here.
        script: For `sh`. A status other than 0 fails the test.
        command: A list.

    Returns:
        The lines that are errors of the command.
    """
    disk.mkdir()
    alone = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    try:
        subprocess.run([*alone, "mount -t tmpfs x $0", disk], check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this user cannot mount a disk")
    done = subprocess.run(
        [*alone, script, str(disk), *command], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return [x for x in done.stderr.splitlines() if x.startswith("Error: ")]
