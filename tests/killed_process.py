"""The command line in a process that kills itself at a chosen moment.

Python announces what it does to files to audit hooks, so that every such
moment can be listed in a first run, and met again in a second one. Of what
TensorFlow's C++ code writes nothing is announced: that is watched for.
"""

import collections
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

# What the hook is told, and which argument is the path.
_EVENTS = {
    "open": 0,
    "os.mkdir": 0,
    "os.remove": 0,
    "os.rename": 1,
    "os.rmdir": 0,
    "subprocess.Popen": 1,
}
ROOT = pathlib.Path(__file__).parents[1]
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def start(folder, arguments, *, environment=None, **options):
    """Start what `command` describes; return a `subprocess.Popen`."""
    return subprocess.Popen(
        command(folder, arguments, **options),
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "1000", **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def command(folder, arguments, *, source=None, kill_at=None, log=None):
    """The command line in a process, to be started in `ROOT`.

    Args:
        folder: The folder that the command writes to.
        arguments: Of `keras-resnext`.
        source: A folder that it reads. Defaults to `None`, none.
        kill_at: One of `moments`; or "3 step", after that step; or one such
            as "3 watch *.index", when there is a new file of this pattern in
            `folder` after that step. Defaults to `None`, never.
        log: Where to write the moments. Defaults to `None`, nowhere.

    Returns:
        A list of strings.
    """
    job = {
        "folder": str(folder),
        "source": source and str(source),
        "kill_at": kill_at,
        "log": log and str(log),
    }
    return [
        *(sys.executable, "-m", "tests.killed_process", json.dumps(job)),
        *map(str, arguments),
    ]


def moments(log):
    """What a process has written to its log.

    A line names a training step, what happened, to which file, and how often
    it has in this step, such as "3 os.rename history.jsonl 1". A run that is
    resumed comes by the same moments from there on.
    """
    return log.read_text().splitlines()


class _Killer:
    """Notes every moment, and kills this process at one of them."""

    def __init__(self, folder, source, kill_at, log):
        self.folder, self.source, self.kill_at = folder, source, kill_at
        self.log = log and open(log, "w", buffering=1)  # noqa: SIM115
        self.counts = collections.Counter()
        self.lock = threading.RLock()
        self.reach(0)

    def hear(self, event, arguments):
        """The audit hook; called before it happens."""
        if event not in _EVENTS:
            return
        name = self._name(event, arguments)
        if name is None:
            return
        with self.lock:
            self.counts[event, name] += 1
            count = self.counts[event, name]
            moment = f"{self.step} {event} {name} {count}"
            if self.log:
                self.log.write(f"{moment}\n")
        if moment == self.kill_at:
            kill()

    def _name(self, event, arguments):
        """What is changed, without what differs between processes."""
        path = arguments[_EVENTS[event]]
        if event == "subprocess.Popen":
            called = [os.path.basename(str(part)) for part in path]
            return "runtimes" if "runtimes.py" in called else None
        # Those in an open folder, as of `shutil.rmtree`, are not absolute.
        if not isinstance(path, (str, bytes, os.PathLike)):
            return None
        path = os.fsdecode(path)
        if event == "os.mkdir" and os.path.isdir(path):
            return None
        if self.source and path.startswith(f"{self.source}/"):
            return f"source {os.path.relpath(path, self.source)}"
        if not path.startswith(f"{self.folder}/") or (
            event == "open" and not arguments[2] & _WRITING
        ):
            return None
        name = os.path.relpath(path, self.folder)
        return re.sub(r"\.staged-\w+-\d+-\w+", ".staged", name)

    def reach(self, step):
        """A training step is done, or was by an earlier process."""
        with self.lock:
            self.step = step
            self.counts.clear()
        at, _, rest = (self.kill_at or "").partition(" ")
        what, _, pattern = rest.partition(" ")
        if at != str(step):
            return
        if what == "step":
            kill()
        if what == "watch":
            threading.Thread(
                target=_watch, args=(self.folder, pattern), daemon=True
            ).start()


def _watch(folder, pattern):
    """Kill this process as soon as there is a file that was not."""
    folder = pathlib.Path(folder)
    before = {*folder.glob(pattern)}
    while {*folder.glob(pattern)} <= before:
        time.sleep(0.0002)
    kill()


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def main():
    job = json.loads(sys.argv[1])
    sys.argv[:2] = ["keras-resnext"]
    from keras_resnext import cli
    from keras_resnext.training import trainer
    from keras_resnext.training.checkpoints import Checkpoints

    killer = _Killer(**job)
    restore, run_steps = Checkpoints.restore, trainer._Training._run_steps

    def restored(self):
        killer.reach(restore(self) or 0)

    def stepped(self, *arguments):
        sums = run_steps(self, *arguments)
        killer.reach(int(self.step))
        return sums

    Checkpoints.restore = restored
    trainer._Training._run_steps = stepped
    sys.addaudithook(killer.hear)
    cli.main()


if __name__ == "__main__":
    main()
