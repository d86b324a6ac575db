"""Load a server with requests, and judge its answers, and time it.

python load.py --model model.onnx

It starts a server, and sends image files of which a few are bad. Each answer
is compared with ONNX Runtime's, called directly, and the time with what ONNX
Runtime takes alone for batches of the same sizes on the same cores. At last it
stops the server under load. The status is 1 if an answer is wrong or lost, or
the server slower than `--at-least` says.

The client has the last core to itself and the server all others; with
`--share` both have all cores.
"""

import argparse
import asyncio
import collections
import contextlib
import dataclasses
import io
import json
import os
import pathlib
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time

import aiohttp
import numpy as np
import psutil
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from keras_resnext import EvalTransform

SERVE = pathlib.Path(__file__).with_name("serve.py")
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
GOOD = 200  # different pictures
TOLERANCE = 1e-5  # of probabilities: batches of other sizes, other rounding


def main():
    """Run the rounds, stop the server, and judge."""
    options = parse_arguments()
    cores = sorted(os.sched_getaffinity(0))
    alone = len(cores) > 1 and not options.share
    server_cores = cores[:-1] if alone else cores
    direct = Direct(options.model, server_cores)
    pictures = make_pictures(direct)
    with tempfile.TemporaryDirectory() as folder:
        server = Server(options.model, server_cores, pathlib.Path(folder))
        os.sched_setaffinity(0, cores[-1:] if alone else cores)
        try:
            asyncio.run(server.wait())
            received, wrong, share = run_rounds(
                server, direct, pictures, options
            )
            received += asyncio.run(stop_under_load(server, pictures, options))
        finally:
            server.process.kill()
        lost = server.accepted() - received
    print(
        f"SIGTERM under load: exit status {server.process.returncode}; of all "
        f"{received + lost} requests accepted, {lost} lost"
    )
    too_slow = share < options.at_least
    if too_slow:
        print(f"per processor second: {share:.3f} of {options.at_least} asked")
    failed = wrong or lost or server.process.returncode or too_slow
    sys.exit(1 if failed else 0)


def parse_arguments():
    """The command line.

    Returns:
        The options by name.
    """
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--model", required=True, help="an ONNX file")
    add("--requests", type=int, default=10_000, help="10,000 by default")
    add("--connections", type=int, default=16, help="16 by default")
    add("--bad", type=float, default=0.02, help="share; 0.02 by default")
    add("--rounds", type=int, default=5, help="parts of the load; 5 by default")
    add(
        "--at-least",
        type=float,
        default=0.0,
        help="fail below this share of ONNX Runtime's own throughput per "
        "processor second; 0 by default",
    )
    add("--share", action="store_true", help="all cores for both sides")
    return parser.parse_args()


class Direct:
    """ONNX Runtime without a server.

    Args:
        path: An ONNX file.
        cores: Numbers of the cores that it runs on, with a thread for each.
    """

    def __init__(self, path, cores):
        # ONNX Runtime reads this on import; otherwise it reports to Microsoft.
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnxruntime

        self._cores = cores
        with self._pinned():
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = len(cores)
            self._session = onnxruntime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"]
            )
        properties = self._session.get_modelmeta().custom_metadata_map
        transform = json.loads(properties["transform"])
        self.transform = EvalTransform.from_config(transform)

    @contextlib.contextmanager
    def _pinned(self):
        """This thread, and those that it starts, on the cores."""
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, self._cores)
        yield
        os.sched_setaffinity(0, before)

    def run(self, pixels):
        """Probabilities of pixels `(pictures, height, width, 3)`."""
        inputs = {"image": np.asarray(pixels, "float32")}
        return self._session.run(["probabilities"], inputs)[0]

    def seconds(self, pictures):
        """How long a batch takes, and how long processors work on it.

        Args:
            pictures: Size of the batch.

        Returns:
            Seconds, medians of calls for half a second.
        """
        side = self.transform.image_size
        pixels = np.zeros((pictures, side, side, 3), "float32")
        times = []
        with self._pinned():
            started = _clocks()
            while len(times) < 5 or np.sum(times, 0)[0] < 0.5:
                self.run(pixels)
                times.append(_clocks() - started)
                started = _clocks()
        return np.median(times, 0)


def _clocks():
    """Wall clock and processor time of this process."""
    return np.array([time.perf_counter(), time.process_time()])


class Server:
    """The server in a process of its own.

    Args:
        model: An ONNX file.
        cores: Numbers of the cores that it runs on.
        folder: For its log.
    """

    def __init__(self, model, cores, folder):
        self._log = folder / "log"
        http, grpc = _free_ports(2)
        self._url = f"http://localhost:{http}"
        self.infer_url = f"{self._url}/v2/models/resnext/infer"
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, SERVE, "--model", model),
                    *("--http-port", str(http), "--grpc-port", str(grpc)),
                    *("--threads", str(len(cores))),
                ],
                stderr=log,
                preexec_fn=lambda: os.sched_setaffinity(0, cores),
            )

    async def wait(self):
        """Wait until it is ready."""
        async with aiohttp.ClientSession() as session:
            while True:
                with contextlib.suppress(aiohttp.ClientConnectionError):
                    url = f"{self._url}/v2/health/ready"
                    async with session.get(url) as response:
                        if response.status == 200:
                            return
                if self.process.poll() is not None:
                    sys.exit(self._log.read_text())
                await asyncio.sleep(0.1)

    async def batches(self):
        """How many batches of each size there were, as a `Counter`."""
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{self._url}/metrics") as response,
        ):
            text = await response.text()
        (family,) = (
            family
            for family in text_string_to_metric_families(text)
            if family.name == "batch_pictures"
        )
        upto = {
            int(float(sample.labels["le"])): int(sample.value)
            for sample in family.samples
            if sample.labels.get("le", "+Inf") != "+Inf"
        }
        return collections.Counter(
            {size: upto[size] - upto.get(size - 1, 0) for size in upto}
        )

    def clocks(self):
        """Wall clock and its processor time."""
        used = psutil.Process(self.process.pid).cpu_times()
        return np.array([time.perf_counter(), used.user + used.system])

    def megabytes(self):
        """Memory that it has."""
        return psutil.Process(self.process.pid).memory_info().rss / 1e6

    def accepted(self):
        """Requests that it began to answer, known once it has stopped."""
        return int(re.search(r"stopped: (\d+)", self._log.read_text())[1])


def _free_ports(count):
    """Numbers of ports that nobody listens at."""
    with contextlib.ExitStack() as stack:
        sockets = [
            stack.enter_context(socket.create_server(("", 0)))
            for _ in range(count)
        ]
        return [socket.getsockname()[1] for socket in sockets]


@dataclasses.dataclass
class Picture:
    """An image file; probabilities, or `None` if it cannot be read."""

    file: bytes
    expected: np.ndarray | None


def make_pictures(direct):
    """Good pictures and bad ones.

    Args:
        direct: A `Direct`, for what is expected.

    Returns:
        Two lists of `Picture`.
    """
    random = np.random.default_rng(0)
    side = direct.transform.image_size
    good = []
    for i in range(GOOD):
        height, width = random.integers(side, 2 * side, 2)
        file = _encode(random, height, width, FORMATS[i % len(FORMATS)])
        pixels = direct.transform.pixels(file)[None]
        good.append(Picture(file, direct.run(pixels)[0]))
    jpeg, png, _, gif, _ = (picture.file for picture in good[: len(FORMATS)])
    bad = [b"", b"text", b"\0" * 1000, jpeg[:99], png[:-50], gif[:99]]
    huge = io.BytesIO()
    Image.new("1", (9000, 9000)).save(huge, "PNG")
    bad.append(huge.getvalue())
    return good, [Picture(file, None) for file in bad]


def _encode(random, height, width, format):
    """An image file of coloured slopes, unlike all others."""
    x, y = np.linspace(0, 1, width), np.linspace(0, 1, height)[:, None]
    waves = [
        np.sin(random.uniform(1, 9) * x + random.uniform(1, 9) * y)
        for _ in range(3)
    ]
    pixels = (127.5 + 127.5 * np.stack(waves, -1)).astype("uint8")
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format)
    return file.getvalue()


def run_rounds(server, direct, pictures, options):
    """Send all requests and print what came of them.

    Args:
        server: A `Server`.
        direct: A `Direct`.
        pictures: See `make_pictures`.
        options: Those of the command line.

    Returns:
        How many answers came, how many of them were wrong, and the
        throughput per processor second as a share of ONNX Runtime's own.
    """
    latencies, ratios, memory = [], [], [server.megabytes()]
    outcomes, sizes = collections.Counter(), collections.Counter()
    each = options.requests // options.rounds
    for part in range(options.rounds):
        before = asyncio.run(server.batches())
        started = server.clocks()
        asked = iter(range(part * each, (part + 1) * each))
        found = asyncio.run(ask(server, pictures, asked, options))
        seconds = server.clocks() - started
        batches = asyncio.run(server.batches()) - before
        alone = sum(
            direct.seconds(size) * count for size, count in batches.items()
        )
        latencies += [latency for _, latency in found]
        outcomes.update(outcome for outcome, _ in found)
        ratios.append(alone / seconds)
        memory.append(server.megabytes())
        sizes += batches
        print(
            f"round {part + 1}: {each / seconds[0]:.0f} requests a second; "
            f"{_shares(ratios[-1])}; {memory[-1]:.0f} MB",
            flush=True,
        )
    p50, p99 = 1000 * np.percentile(latencies, (50, 99))
    answers = outcomes.total()
    print(f"outcomes: {dict(outcomes)} of {each * options.rounds} requests")
    print(
        f"batches: {sizes.total()}, of {_mean(sizes):.1f} pictures on average"
    )
    print(f"latency: median {p50:.1f} ms, 99th percentile {p99:.1f} ms")
    print(f"memory: {', '.join(f'{value:.0f}' for value in memory)} MB")
    shares = np.median(ratios, 0)
    print(f"of ONNX Runtime's own: {_shares(shares)}")
    wrong = each * options.rounds - outcomes["right"] - outcomes["4xx"]
    return answers, wrong, shares[1]


def _shares(ratios):
    return "throughput {:.3f}, per processor second {:.3f}".format(*ratios)


def _mean(counts):
    return sum(size * count for size, count in counts.items()) / counts.total()


async def ask(server, pictures, numbers, options):
    """Send requests, as many at once as there are connections.

    Args:
        server: A `Server`.
        pictures: See `make_pictures`.
        numbers: Iterator of the requests' numbers, which say what they send.
        options: Those of the command line.

    Returns:
        A list of outcomes and latencies in seconds. An outcome is "right",
        "4xx" for a bad picture, or what went wrong.
    """
    found = []

    async def connection(session):
        for number in numbers:
            started = time.perf_counter()
            random = np.random.default_rng(number)
            kind = pictures[int(random.random() < options.bad)]
            picture = kind[random.integers(len(kind))]
            outcome = await _ask_once(server, session, number, picture)
            if outcome == "refused":
                return
            found.append((outcome, time.perf_counter() - started))

    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=options.connections)
    ) as session:
        await asyncio.gather(
            *(connection(session) for _ in range(options.connections))
        )
    return found


async def _ask_once(server, session, number, picture):
    """The outcome of a request; "refused" if there was no answer."""
    data = struct.pack("<I", len(picture.file)) + picture.file
    tensor = {"name": "image_bytes", "datatype": "BYTES", "shape": [1]}
    tensor["parameters"] = {"binary_data_size": len(data)}
    head = json.dumps({"id": str(number), "inputs": [tensor]}).encode()
    try:
        async with session.post(
            server.infer_url,
            data=head + data,
            headers={
                "Content-Type": "application/octet-stream",
                "Inference-Header-Content-Length": str(len(head)),
            },
        ) as response:
            answer = await response.json()
    except (aiohttp.ClientError, TimeoutError):
        return "refused"
    if picture.expected is None:
        is_refused = response.status // 100 == 4 and answer["error"]
        return "4xx" if is_refused else f"bad, status {response.status}"
    if response.status != 200:
        return f"good, status {response.status}"
    is_right = answer["id"] == str(number) and _is_right(answer, picture)
    return "right" if is_right else "wrong"


def _is_right(answer, picture):
    """Whether the best classes are those that are expected."""
    outputs = {output["name"]: output["data"] for output in answer["outputs"]}
    scores = np.array(outputs["top_scores"])
    best = -np.sort(-picture.expected)[: len(scores)]
    named = picture.expected[outputs["top_indices"]]
    differences = np.abs([scores - best, scores - named])
    return differences.max() < TOLERANCE and outputs["valid"] == [True]


async def stop_under_load(server, pictures, options):
    """Send SIGTERM while requests come.

    Args:
        server: A `Server`.
        pictures: See `make_pictures`.
        options: Those of the command line.

    Returns:
        How many answers came before the server was gone.
    """
    numbers = iter(range(options.requests, sys.maxsize))
    load = asyncio.create_task(ask(server, pictures, numbers, options))
    await asyncio.sleep(2)
    server.process.send_signal(signal.SIGTERM)
    found = await load
    await asyncio.to_thread(server.process.wait, 60)
    return len(found)


if __name__ == "__main__":
    main()
