"""Try new files for a while: `python -m tests.fuzz --minutes 60`.

Each reader has processes of its own, because a file may end one. What failed
is in `runs/fuzz`, by reader; put it into `corpus/` once it is mended.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

_FOLDER = pathlib.Path("runs/fuzz")
_ROUND = 200  # files between two looks at the clock
_COLUMNS = "{:28} {:>7} {:>7} {:>7}  {}"


def main():
    import keras_resnext  # noqa: F401, before TensorFlow
    from tests.fuzz.readers import READERS

    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument(
        "readers",
        nargs="*",
        metavar="READER",
        help=f"readers to try, of {', '.join(READERS)}; all by default",
    )
    parser.add_argument("--minutes", type=float, default=60, help="in all")
    parser.add_argument(
        "--seed", type=int, default=int(time.time()), help="for the same files"
    )
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    names = chosen.readers or list(READERS)
    if unknown := set(names) - READERS.keys():
        parser.error(f"READER must be of {', '.join(READERS)}; got {unknown}")
    if chosen.alone:
        return _search(READERS[names[0]], 60 * chosen.minutes, chosen.seed)
    cores = os.cpu_count() or 1
    minutes = chosen.minutes * min(cores, len(names)) / len(names)
    print(f"Seed {chosen.seed}, {minutes:.1f} minutes a reader")
    print(_COLUMNS.format("reader", "files", "loaded", "refused", "failure"))
    results = []
    with concurrent.futures.ThreadPoolExecutor(cores) as pool:
        for result in pool.map(
            lambda name: _run(name, minutes, chosen.seed), names
        ):
            print(_COLUMNS.format(*result), flush=True)
            results.append(result)
    files, failures = sum(x[1] for x in results), [x for x in results if x[-1]]
    print(f"{files} files, {len(failures)} readers failed")
    return 1 if failures else 0


def _run(name, minutes, seed):
    """A row of the table: one reader, in a process of its own."""
    folder = _FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log.txt"
    with log.open("w") as errors:
        process = subprocess.run(
            [
                *(sys.executable, "-W", "ignore", "-m", "tests.fuzz", name),
                *("--alone", "--minutes", str(minutes), "--seed", str(seed)),
            ],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    lines = [json.loads(x) for x in process.stdout.splitlines()]
    loaded = sum(x.get("loaded", 0) for x in lines)
    refused = sum(x.get("refused", 0) for x in lines)
    failure = next((x["failure"] for x in lines if "failure" in x), "")
    if process.returncode and not failure:
        failure = f"the process ended with {process.returncode}: see {log}"
    return name, loaded + refused, loaded, refused, failure


def _search(reader, seconds, seed):
    """Search until the time is up; print what was found as JSON lines."""
    from tests.fuzz.search import search
    from tests.fuzz.trial import Trial

    folder = pathlib.Path(tempfile.mkdtemp(dir=_FOLDER / reader.file))
    trial = Trial(reader, folder)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            print(json.dumps(search(trial, _ROUND, seed)), flush=True)
        except Exception as error:
            message = f"{trial.path}: {type(error).__name__}: {error}"
            print(json.dumps({"failure": message[:1000]}), flush=True)
            return 1
        seed += 1
    trial.clear()
    return 0


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.exit(main())
