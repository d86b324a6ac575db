"""Many files for one reader."""

import collections
import pathlib

import hypothesis
from hypothesis import HealthCheck
from hypothesis import Phase

from tests.fuzz.changes import changed
from tests.fuzz.trial import Trial

CORPUS = pathlib.Path(__file__).with_name("corpus")
# What a failure was found with is replaced by a smaller file; explaining it
# would trace every call.
_PHASES = (Phase.generate, Phase.shrink)


class _File(bytes):
    """Bytes that are not printed in full when they break a promise."""

    def __repr__(self):
        return f"{bytes(self[:200])!r}, {len(self)} bytes"


def corpus(reader) -> list[pathlib.Path]:
    """Every file that the reader, or its twin, has failed on.

    Args:
        reader: A `Reader`.

    Returns:
        Paths.

    Example:

    >>> corpus(READERS["recipe.json"])[0].name
    'line_break.json'
    """
    return sorted((CORPUS / reader.corpus).glob("*"))


def search(
    trial: Trial, examples: int, seed: int | None = None
) -> collections.Counter:
    """Let a reader read changed files until one breaks a promise.

    Args:
        trial: The `Trial`.
        examples: How many files.
        seed: Another one gives other files. Defaults to `None`: always the
            same.

    Returns:
        How many were loaded, and how many refused.

    Raises:
        Exception: what `Trial.attempt` raised for the smallest file that
            still breaks the promise, which is left in the trial's folder.

    Example:

    >>> search(Trial(READERS["recipe.json"], tmp_path), 100)
    Counter({'refused': 83, 'loaded': 17})
    """
    counts = collections.Counter()

    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=seed is None,
        phases=_PHASES,
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(changed(trial.seeds, trial.reader.parts).map(_File))
    def attempt(content):
        counts[trial.attempt(content)] += 1

    if seed is not None:
        attempt = hypothesis.seed(seed)(attempt)
    attempt()
    return counts
