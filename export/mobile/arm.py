"""Run the kit on a phone's kind of processor, and compare: `make arm`.

qemu executes 64-bit ARM programs one instruction after another: the kernels
that a phone runs, not its speed. Debian's Python for ARM, ai-edge-litert's
wheel for ARM and qemu are unpacked into a folder: nothing is installed, and
root is not needed.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import numpy as np

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
# qemu's names of cores, each with the part number from which LiteRT knows a
# core of the same features.
CORES = {
    "cortex-a53": "0xd03",  # NEON alone
    "cortex-a76": "0xd0b",  # and dot products of bytes
    "max,sve=off,sme=off": "0xd47",  # and matrices of bytes
}
# /proc/cpuinfo names the host's processor, which crashes LiteRT.
CPUINFO = """processor\t: 0
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x1
CPU part\t: {}
CPU revision\t: 0
"""
# apt in a system of its own, where nothing is installed.
APT = """APT::Architecture "{architecture}";
APT::Architectures {{ "{architecture}"; }};
APT::Sandbox::User "root";
Dir::State "{folder}/state";
Dir::State::status "{folder}/state/status";
Dir::Cache "{folder}/cache";
"""
# The probabilities of all images, by each file.
RUN = """
import json, sys
import numpy as np
kit, images, files = json.loads(sys.argv[1])
sys.path.insert(0, kit)
from classify import open_model
images = np.load(images, mmap_mode="r")
for file, output in files:
    classify, _ = open_model(file, threads=1)
    np.save(output, [classify(x.astype("float32")) for x in images])
"""
# `make fashion` has prepared them.
IMAGES = """
import sys
import numpy as np
import tensorflow_datasets as tfds
data = tfds.load("fashion_mnist", split="test", batch_size=-1)
np.savez(sys.argv[1], **tfds.as_numpy(data))
"""
# Bound on rounding: sums of 2,304 products differ by about 48 / 2**24; over 30
# layers by 5 times that; for logits up to 10, a probability moves by at most
# half of it: 8e-5.
ROUNDING = 1e-4
ROW = "{:20} {:8} {:>10} {:>8} {:>8} {:>8}"


def main():
    """Print how far ARM's probabilities are from this machine's."""
    arguments = parse_arguments()
    folder = ROOT / ".arm"
    try:
        if arguments.images < 1:
            raise ValueError(
                f"`--images` must be 1 or more; got {arguments.images}."
            )
        prepare(folder)
        if arguments.prepare:
            return
        files = export(folder)
        images, labels = read_images(folder, arguments.images)
        print(f"{len(images)} test images of Fashion-MNIST")
        compare(folder, files, images, labels)
    except subprocess.CalledProcessError as error:
        sys.exit(f"Error: {error.cmd[0]} failed; its message is above.")
    except (OSError, ValueError) as error:
        sys.exit(f"Error: {error}")


def parse_arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--images", type=int, default=300, help="of Fashion-MNIST's test set"
    )
    parser.add_argument(
        "--prepare", action="store_true", help="unpack only, compare nothing"
    )
    return parser.parse_args()


def prepare(folder):
    """Unpack qemu, Python and LiteRT into a folder, unless that is done."""
    if (folder / "ready").exists():
        return
    if not shutil.which("apt-get"):
        raise FileNotFoundError("Debian on x86-64 is needed, for apt-get.")
    shutil.rmtree(folder, ignore_errors=True)
    print("Unpacking Python for ARM")
    unpack(folder / "root", "arm64", "python3", "libstdc++6")
    unpack(folder / "qemu", "amd64", "qemu-user-static")
    (python,) = (folder / "root/usr/bin").glob("python3.*")
    subprocess.run(
        [
            *(pathlib.Path(sys.executable).with_name("uv"), "pip", "install"),
            *("--quiet", "--python-platform", "aarch64-manylinux_2_36"),
            *("--python-version", python.name.removeprefix("python")),
            *("--only-binary", ":all:", "--target", folder / "packages"),
            *("--constraints", ROOT / "requirements.lock"),
            *("--requirements", HERE / "requirements.txt"),
        ],
        check=True,
    )
    (folder / "ready").touch()


def unpack(folder, architecture, *packages):
    """Unpack Debian's packages, and what they need, into a folder."""
    apt = folder.with_name("apt")
    for place in ("state/lists/partial", "cache/archives/partial"):
        (apt / place).mkdir(parents=True)
    (apt / "state/status").touch()
    config = apt / "apt.conf"
    config.write_text(APT.format(architecture=architecture, folder=apt))
    environment = os.environ | {"APT_CONFIG": str(config)}
    get = ["apt-get", "--quiet=2", "--yes", "--no-install-recommends"]
    for command in (["update"], ["install", "--download-only", *packages]):
        subprocess.run([*get, *command], env=environment, check=True)
    for package in (apt / "cache/archives").glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", package, folder], check=True)
    shutil.rmtree(apt)


def export(folder):
    """The published network in three files: paths by what they are."""
    models = folder / "models"
    run(
        [
            *(sys.executable, "-m", "keras_resnext", "export"),
            *("resnext29_8x4d_f64", "--weights", "fashion_mnist"),
            *("--format", "tflite", "--quantize", "none,dynamic"),
            *("--output", models, "--overwrite"),
        ]
    )
    return {
        "float32": models / "model.tflite",
        "dynamic": models / "model_dynamic.tflite",
        "int8": HERE / "fashion_mnist.tflite",
    }


def read_images(folder, count):
    """Test images of Fashion-MNIST, uint8 `(images, 28, 28, 3)`, and labels."""
    path = folder / "fashion_mnist.npz"
    if not path.exists():
        run([sys.executable, "-c", IMAGES, path])
    data = np.load(path)
    pixels = data["image"][:count]
    return np.repeat(pixels, 3, axis=-1), data["label"][:count]


def compare(folder, files, images, labels):
    """Print a line for each core and file.

    Raises:
        ValueError: if a difference is larger than rounding explains: in eight
            bits than what the eight bits themselves make here, because a value
            between two levels may become either.
    """
    here = probabilities(files, images, [sys.executable])
    print(ROW.format("core", "file", "difference", "allowed", "top-1", "right"))
    wrong = []
    for core in CORES:
        python = arm_python(folder, core)
        if answer(python) != answer([sys.executable]):
            raise ValueError(f"classify.py prints another text on {core}.")
        there = probabilities(files, images, python)
        for name in files:
            allowed = ROUNDING + distance(here[name], here["float32"])
            found = distance(there[name], here[name])
            best = there[name].argmax(1)
            same = (best == here[name].argmax(1)).mean()
            right = (best == labels).mean()
            numbers = f"{found:.2g}", f"{allowed:.2g}", f"{same:.2%}"
            print(ROW.format(core, name, *numbers, f"{right:.2%}"), flush=True)
            if not found <= allowed:
                wrong.append(f"{name} on {core} is off by {found:.2g}")
            if same < 0.99:
                wrong.append(f"{name} on {core} agrees in {same:.2%} only")
    if wrong:
        raise ValueError("; ".join(wrong))


def distance(some, others):
    """The largest difference of a probability."""
    return np.abs(some - others).max()


def arm_python(folder, core):
    """The command that runs Debian's Python for ARM on such a core."""
    root = folder / "root"
    for name, text in {
        "proc/cpuinfo": CPUINFO.format(CORES[core]),
        "sys/devices/system/cpu/possible": "0\n",
        "sys/devices/system/cpu/present": "0\n",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (python,) = (root / "usr/bin").glob("python3.*")
    return [
        *(folder / "qemu/usr/bin/qemu-aarch64-static", "-cpu", core),
        *("-L", root),  # where files are looked for first
        *("-E", f"PYTHONHOME={root}/usr"),
        *("-E", f"PYTHONPATH={folder}/packages"),
        python,
    ]


def answer(python):
    """What classify.py prints."""
    image, model = HERE / "ankle-boot.png", HERE / "fashion_mnist.tflite"
    command = [HERE / "classify.py", image, "--model", model, "--threads", "1"]
    return run([*python, *command])


def probabilities(files, images, python):
    """An array for each file, by its name; every processor has a share."""
    count = min(os.cpu_count(), len(images))
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        parts = [
            pool.submit(probabilities_of_part, files, part, python)
            for part in np.array_split(images, count)
        ]
        done = [part.result() for part in parts]
    return {name: np.concatenate([x[name] for x in done]) for name in files}


def probabilities_of_part(files, images, python):
    """What `probabilities` returns, by one process."""
    with tempfile.TemporaryDirectory() as place:
        place = pathlib.Path(place)
        np.save(place / "images.npy", images)
        outputs = {name: place / f"{name}.npy" for name in files}
        pairs = [[str(files[name]), str(outputs[name])] for name in files]
        job = [str(HERE), str(place / "images.npy"), pairs]
        run([*python, "-c", RUN, json.dumps(job)])
        return {name: np.load(outputs[name]) for name in files}


def run(command):
    """The output of a command; its errors are shown if it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
    done.check_returncode()
    return done.stdout


if __name__ == "__main__":
    main()
