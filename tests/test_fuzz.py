"""Files that were changed at random: a correct load or a clear refusal."""

import importlib.util

import pytest

from tests.fuzz.readers import READERS
from tests.fuzz.search import corpus
from tests.fuzz.search import search
from tests.fuzz.trial import Trial

# A minute for all; `make fuzz` tries thousands of others.
EXAMPLES = 80


def make_trial(name, folder):
    reader = READERS[name]
    if reader.needs and importlib.util.find_spec(reader.needs) is None:
        pytest.skip(f"needs {reader.needs}")
    return Trial(reader, folder)


@pytest.mark.integration
@pytest.mark.parametrize("name", READERS)
def test_changed_files(name, tmp_path):
    counts = search(make_trial(name, tmp_path), EXAMPLES)
    # Both, or the changes are too small or too large to find anything.
    assert counts["refused"] > EXAMPLES / 10
    assert counts["loaded"] > 0 or name in ("report.json", "w.pth")


@pytest.mark.parametrize(
    "name", [name for name, reader in READERS.items() if corpus(reader)]
)
def test_files_that_once_failed(name, tmp_path):
    trial = make_trial(name, tmp_path)
    for path in corpus(READERS[name]):
        trial.attempt(path.read_bytes())
