"""What is kept off the screen, and what is not."""

import os
import subprocess
import sys
import threading

import pytest

from keras_resnext import quiet


def say(text):
    """As native code does, which knows no `sys.stderr`."""
    os.write(2, text.encode())


@pytest.fixture
def undecided(monkeypatch):
    """A process in which nobody has imported TensorFlow or set a level."""
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    monkeypatch.delenv(quiet.LOG_LEVEL, raising=False)
    monkeypatch.setattr(quiet, "_level_set_here", None)


def test_native_output_is_hidden_for_a_while(capfd):
    say("before ")
    with quiet.hidden_stderr():
        say("hidden ")
        print("hidden", file=sys.__stderr__, flush=True)
    say("after")
    assert capfd.readouterr().err == "before after"


def test_it_is_shown_after_an_exception(capfd):
    def fail():
        with quiet.hidden_stderr():
            say("why ")
            raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        fail()
    say("after")
    assert capfd.readouterr().err == "why after"


def test_who_wants_all_sees_all(capfd, monkeypatch):
    monkeypatch.setenv(quiet.LOG_LEVEL, "0")
    with quiet.hidden_stderr():
        say("shown")
    assert capfd.readouterr().err == "shown"


def test_threads_give_standard_error_back(capfd):
    together = threading.Barrier(4)

    def hide():
        together.wait()
        for _ in range(50):
            with quiet.hidden_stderr():
                say("hidden")

    threads = [threading.Thread(target=hide) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    say("after")
    assert capfd.readouterr().err == "after"


def test_a_level_is_set_until_tensorflow_is_there(undecided, monkeypatch):
    quiet.limit_tensorflow_log("1")
    assert os.environ[quiet.LOG_LEVEL] == "1"
    quiet.limit_tensorflow_log("3")  # the command line hides more
    assert os.environ[quiet.LOG_LEVEL] == "3"
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    quiet.limit_tensorflow_log("1")
    assert os.environ[quiet.LOG_LEVEL] == "3"


@pytest.mark.parametrize("level", ["0", "1", "3"])
def test_a_users_level_stays(undecided, monkeypatch, level):
    monkeypatch.setenv(quiet.LOG_LEVEL, level)
    quiet.limit_tensorflow_log("1")
    quiet.limit_tensorflow_log("2")
    assert os.environ[quiet.LOG_LEVEL] == level


@pytest.mark.slow
@pytest.mark.parametrize("level", [None, "0"])
def test_looking_for_a_gradient_is_not_announced(level):
    """Without oneDNN on a CPU there is none, of which TensorFlow warns."""
    environment = {
        **{k: v for k, v in os.environ.items() if k != quiet.LOG_LEVEL},
        **({quiet.LOG_LEVEL: level} if level else {}),
        "TF_ENABLE_ONEDNN_OPTS": "0",
        "CUDA_VISIBLE_DEVICES": "",
    }
    code = (
        "import keras_resnext\n"
        "from keras_resnext.layers import conv_implementation\n"
        "print(conv_implementation())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "split\n"
    announced = "Gradients for grouped convolutions" in done.stderr
    assert announced == (level == "0")
    assert ("cpu_feature_guard" in done.stderr) == (level == "0")
