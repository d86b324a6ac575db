"""This CPU's instruction sets, and whether TensorFlow uses oneDNN on it.

TensorFlow turns oneDNN on by itself only on CPUs with AVX-512's neural-network
instructions or newer ones. On those with AVX2 it is faster too, and grouped
convolutions have a gradient only there (`keras_resnext.layers`).

TensorFlow reads the setting when it is imported, and `import keras` imports
it: whoever comes later can only say so.
"""

import functools
import os
import pathlib
import re
import sys
import warnings

from keras_resnext.private import onednn_is_on

SETTING = "TF_ENABLE_ONEDNN_OPTS"
# From the oldest to the newest, as Linux spells them.
INSTRUCTION_SETS = (
    "avx",
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_bf16",
)

_turned_on = False  # whether `turn_on_onednn` did it


@functools.cache
def instruction_sets() -> tuple[str, ...]:
    """The instruction sets of this CPU that matter to neural networks.

    Returns:
        Some of `INSTRUCTION_SETS`; none where Linux does not tell, as on Arm
        or other systems.

    Example:

    >>> instruction_sets()  # AMD Zen 3
    ('avx', 'avx2')
    """
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return ()
    flags = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    known = set(flags[1].split()) if flags else set()
    return tuple(name for name in INSTRUCTION_SETS if name in known)


def turn_on_onednn() -> None:
    """Have TensorFlow use oneDNN, where it is faster and can still be told.

    Nothing happens where the user has set `TF_ENABLE_ONEDNN_OPTS`, where
    TensorFlow is already imported, and on CPUs without AVX2.

    Example:

    >>> turn_on_onednn()
    >>> os.environ["TF_ENABLE_ONEDNN_OPTS"]
    '1'
    """
    global _turned_on
    if (
        "avx2" in instruction_sets()
        and SETTING not in os.environ
        and "tensorflow" not in sys.modules
    ):
        os.environ[SETTING] = "1"
        _turned_on = True


def onednn_decision() -> str:
    """Whether TensorFlow uses oneDNN in this process, and who decided it.

    Imports TensorFlow.

    Returns:
        Such as `"on, by keras_resnext"`.

    Example:

    >>> onednn_decision()
    'on, by TF_ENABLE_ONEDNN_OPTS=1'
    """
    if _turned_on:
        who = "keras_resnext"
    elif SETTING in os.environ:
        who = f"{SETTING}={os.environ[SETTING]}"
    else:
        who = "TensorFlow"
    return f"{'on' if onednn_is_on() else 'off'}, by {who}"


def warn_without_onednn() -> None:
    """Warn if oneDNN is off though nobody chose that, and it is faster.

    Imports TensorFlow. `benchmarks/NOTES.md` has the measurements.
    """
    if (
        "avx2" in instruction_sets()
        and SETTING not in os.environ
        and not onednn_is_on()
    ):
        warnings.warn(
            "TensorFlow was imported without oneDNN: on this CPU ResNeXt-50 "
            "takes 1.3 to 1.7 times as long. Set "
            f"{SETTING}=1 in the environment, or import keras_resnext before "
            f"keras. {SETTING}=0 hides this warning.",
            stacklevel=2,
        )
