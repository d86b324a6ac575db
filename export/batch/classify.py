"""Classify millions of pictures with an exported .onnx file, on Ray Data.

It needs ray[data], onnxruntime, Pillow and pyarrow, and nothing else:

    python classify.py photos/ classes/ --model model.onnx

After a kill the same command goes on where it was.
"""

import argparse
import collections
import contextlib
import fcntl
import hashlib
import io
import itertools
import json
import logging
import os
import pathlib
import secrets
import sys
import tempfile
import time
import uuid
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from PIL import UnidentifiedImageError

SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp")
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP")
# Where Pillow, as it comes, refuses pictures.
MAX_PIXELS = 178_956_970
# Most parts that a row group of Parquet is read for.
SPLITS = 16
# Longer side by shorter from which only the middle is resized, not the whole,
# which would have 100 times the pixels of a square, or 100,000 times.
LONG = 100
# By the EXIF tag 0x0112.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
PREDICTIONS = pa.schema(
    {
        "path": pa.string(),
        "label": pa.string(),
        "probability": pa.float32(),
        "labels": pa.list_(pa.string()),
        "probabilities": pa.list_(pa.float32()),
    }
)
ERRORS = pa.schema({"path": pa.string(), "reason": pa.string()})


def main():
    """Classify what is not classified yet; an error is one line."""
    arguments = parse_arguments()
    try:
        check_arguments(arguments)
        # Workers are in other folders.
        arguments.source = arguments.source.absolute()
        arguments.output = arguments.output.absolute()
        content = read_model(arguments.model)
        Model(content, threads=1)  # an error now, not in each worker
        output = Output(arguments.output, content, arguments.top)
        groups = read_source(arguments)
        with output.held():
            parts = plan(groups, output.read_done(), arguments.part)
            classify(arguments, content, output, groups, parts)
            check_complete(output, groups)
    except KeyboardInterrupt:
        sys.exit("Stopped. The same command goes on from here.")
    except (ValueError, OSError, MemoryError) as error:
        sys.exit(f"Error: {one_line(error) or type(error).__name__}")


def parse_arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("source", type=pathlib.Path, help="folder of pictures, or Parquet")
    add("output", type=pathlib.Path, help="folder for Parquet files")
    add("--model", required=True, help="an .onnx file")
    add("--top", type=int, default=5, help="classes of each picture")
    add("--workers", type=int, default=2, help="processes, one model each")
    add("--threads", type=int, default=1, help="of each worker")
    add("--batch-size", type=int, default=32, help="pictures at a time")
    add(
        "--max-pixels",
        type=int,
        default=MAX_PIXELS,
        help="most that a picture may have",
    )
    add(
        "--part",
        type=int,
        default=1000,
        help="pictures in each file that is written, which a kill may cost",
    )
    add("--address", default="local", help="a Ray cluster; else one is started")
    add("--bytes", default="bytes", help="Parquet's column of image files")
    add("--id", default="path", help="Parquet's column of unique names")
    return parser.parse_args()


def check_arguments(arguments):
    """Refuse, before anything starts, what cannot work."""
    for name in (
        "top",
        "workers",
        "threads",
        "batch_size",
        "part",
        "max_pixels",
    ):
        value = getattr(arguments, name)
        if value < 1:
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"`{option}` must be 1 or more; got {value}.")
    if not arguments.source.exists():
        raise ValueError(
            "`source` must be a folder of pictures, or Parquet files; got "
            f"{arguments.source}, which is not there."
        )
    if arguments.output.exists() and not arguments.output.is_dir():
        raise ValueError(
            f"`output` must be a folder; got {arguments.output}, a file."
        )
    # Its Parquet files would be a source the next time.
    if arguments.output.resolve().is_relative_to(arguments.source.resolve()):
        raise ValueError(
            f"`output` must be outside the source; got {arguments.output}."
        )


def read_model(path):
    """The content of an .onnx file: workers elsewhere do not have the file."""
    if not os.path.isfile(path):
        raise ValueError(
            f"`--model` must be an .onnx file; got {path}, which is no file."
        )
    return pathlib.Path(path).read_bytes()


class Model:
    """An .onnx file that `keras-resnext export` wrote, quantised or not.

    Args:
        content: Of the file.
        threads: Threads that ONNX Runtime may use.

    Raises:
        ValueError: if it is another kind of file.
    """

    def __init__(self, content, threads):
        # ONNX Runtime reads this on import; otherwise it reports to Microsoft.
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(
                content, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its errors have no type in common
            raise ValueError(
                f"`--model` must be an .onnx file: {one_line(error)}"
            ) from error
        metadata = self.session.get_modelmeta().custom_metadata_map
        takes = metadata.get("input", "")
        if not takes.startswith("RGB pixels"):
            raise ValueError(
                "`--model` must take RGB pixels, as exported with "
                f"`--preprocessing`; got one that takes {takes or 'others'}."
            )
        self.transposed = metadata.get("data_format") == "NCHW"
        inputs = {x.name: x.shape for x in self.session.get_inputs()}
        outputs = {x.name: x.shape for x in self.session.get_outputs()}
        shape = inputs.get("image", [])
        if self.transposed:
            shape = [*shape[:1], *shape[2:], *shape[1:2]]
        if "probabilities" not in outputs or shape[3:] != [3]:
            raise ValueError(
                "`--model` must map `image`, in colour, to `probabilities`; "
                f"got {inputs} and {outputs}."
            )
        self.size = tuple(shape[1:3])
        self.labels = json.loads(metadata.get("labels", "null")) or [
            str(i) for i in range(outputs["probabilities"][1])
        ]
        transform = json.loads(metadata.get("transform", "{}"))
        self.crop_pct, self.interpolation = 1.0, "bilinear"
        if transform:
            self.crop_pct = transform["image_size"] / transform["resize_size"]
            self.interpolation = transform["interpolation"]

    def read(self, source, max_pixels=MAX_PIXELS):
        """A picture as the network sees it.

        Args:
            source: Path of an image file, or its content as bytes.
            max_pixels: Most that it may have.

        Returns:
            uint8 array `(height, width, 3)` of RGB.

        Raises:
            ValueError: if it cannot be read.
        """
        # Beyond eight times the size, no difference remains.
        shrink_to = 8 * int(max(self.size) / self.crop_pct + 1e-6)
        image = read_picture(source, max_pixels, shrink_to)
        return resize_and_crop(
            image, self.size, self.crop_pct, self.interpolation
        )

    def __call__(self, pixels):
        """Probabilities, float32 `(pictures, classes)`, of what `read` gave."""
        images = np.stack(pixels).astype("float32")
        if self.transposed:
            images = images.transpose(0, 3, 1, 2)
        return self.session.run(["probabilities"], {"image": images})[0]


def read_picture(source, max_pixels=MAX_PIXELS, shrink_to=1 << 30):
    """Read an image file, turned upright.

    Args:
        source: Its path, or its content as bytes; JPEG, PNG, GIF, BMP or WebP,
            whatever its name.
        max_pixels: Most that it may have, by its header.
        shrink_to: A JPEG whose shorter side is at least twice this is decoded
            at a fraction of its size. Defaults to never.

    Returns:
        A Pillow image of mode RGB.

    Raises:
        ValueError: if it is not such a file, or damaged.
        OSError: if the disk or the network fails; it may be good.
        MemoryError: if there is too little memory for it.
    """
    try:
        if isinstance(source, bytes):
            source = io.BytesIO(source)
        elif source is None:
            raise ValueError("it has no content")
        elif not os.path.isfile(source):
            # A pipe may never end.
            raise ValueError("there is no such file")
        # Its own limit, which warns from half of it on; ours is below.
        Image.MAX_IMAGE_PIXELS = None
        with Image.open(source, formats=FORMATS) as image:
            check_picture(image, max_pixels)
            image.draft(None, (shrink_to, shrink_to))
            return to_upright_rgb(image)
    except UnidentifiedImageError as error:
        raise ValueError(
            f"unknown format; {', '.join(FORMATS)} are read"
        ) from error
    except MemoryError:
        raise
    except OSError as error:
        # Pillow's own have no number; a disk's or network's may pass.
        if error.errno is not None:
            raise
        raise ValueError(one_line(error) or type(error).__name__) from error
    # On damaged files, Pillow raises errors of any type.
    except Exception as error:
        raise ValueError(one_line(error) or type(error).__name__) from error


def check_picture(image, max_pixels):
    """Refuse, before its pixels are decoded, what is too large or unclear."""
    width, height = image.size
    if width * height > max_pixels:
        raise ValueError(
            f"it has {width}x{height} pixels, more than `--max-pixels` "
            f"({max_pixels})"
        )
    if image.format == "GIF" and image.tile[0][1] != (0, 0, width, height):
        raise ValueError("a GIF file's first frame must fill the picture")
    # Adobe stores the inverse; of other files nobody knows.
    if image.mode == "CMYK" and "adobe" not in image.info:
        raise ValueError("a JPEG file in CMYK must have Adobe's mark")


def to_upright_rgb(image):
    """A Pillow image, as it was opened, as RGB and turned as EXIF says."""
    # Not `getexif`, which also reads XMP and what stands behind the pixels.
    exif = Image.Exif()
    with contextlib.suppress(Exception):  # damaged: upright
        exif.load(image.info.get("exif", b""))
    if image.mode.startswith("I"):
        # 16 bits a pixel, of which Pillow's conversion clips all above 255.
        image = Image.fromarray((np.asarray(image) >> 8).astype("uint8"))
    image = image.convert("RGB")
    turn = TURNS.get(exif.get(0x0112))
    return image if turn is None else image.transpose(turn)


def resize_and_crop(image, size, crop_pct=1.0, interpolation="bilinear"):
    """Resize an image and crop its centre, as in evaluation.

    Args:
        image: A `PIL.Image.Image` in mode RGB.
        size: `(height, width)` of the result, in pixels.
        crop_pct: Share of the resized image's shorter side that the crop has;
            of a `size` that is not square, the side that fits tightest.
        interpolation: `"bilinear"` or `"bicubic"`, both antialiased.

    Returns:
        uint8 array `(height, width, 3)`.
    """
    height, width = (int(side / crop_pct + 1e-6) for side in size)
    if image.width * height <= image.height * width:
        resized = (width, int(width * image.height / image.width))
    else:
        resized = (int(height * image.width / image.height), height)
    height, width = size
    left = round((resized[0] - width) / 2)
    top = round((resized[1] - height) / 2)
    box = left, top, left + width, top + height
    resampling = Image.Resampling[interpolation.upper()]
    if max(resized) > LONG * min(resized):
        x, y = image.width / resized[0], image.height / resized[1]
        box = box[0] * x, box[1] * y, box[2] * x, box[3] * y
        return np.asarray(image.resize((width, height), resampling, box))
    return np.asarray(image.resize(resized, resampling).crop(box))


def read_source(arguments):
    """The names of all pictures, in groups that a worker can read alone.

    Args:
        arguments: The command line.

    Returns:
        A list of dicts: `file`, a Parquet file's path or "", `group`, which of
        its row groups, and `names`.

    Raises:
        ValueError: if there are none, or two have one name.
    """
    source = arguments.source
    groups = []
    names = list_pictures(source) if source.is_dir() else []
    if names:
        groups.append({"file": "", "group": 0, "names": names})
    else:
        files = (
            sorted(source.rglob("*.parquet")) if source.is_dir() else [source]
        )
        for file in files:
            groups += read_names(file, arguments.id, arguments.bytes)
    counts = collections.Counter(
        itertools.chain.from_iterable(group["names"] for group in groups)
    )
    if not counts:
        raise ValueError(
            "`source` must have pictures or Parquet files; got "
            f"{source}, which has none."
        )
    name, count = counts.most_common(1)[0]
    if count > 1:
        raise ValueError(
            f"`--id` must be a column of unique names; in {arguments.id}, "
            f"{name} occurs {count} times."
        )
    return groups


def list_pictures(folder):
    """The pictures below a folder, sorted: paths from there, with slashes.

    Raises:
        OSError: if a folder cannot be listed.
    """

    def fail(error):
        raise error

    names = []
    for place, _, files in os.walk(folder, onerror=fail):
        at = pathlib.Path(place).relative_to(folder)
        names += [
            # Parquet's text is UTF-8: files of other names end as errors.
            os.fsencode(at / file).decode(errors="backslashreplace")
            for file in files
            if file.lower().endswith(SUFFIXES)
        ]
    return sorted(name.replace(os.sep, "/") for name in names)


def read_names(path, id_column, bytes_column):
    """The groups of a Parquet file, see `read_source`."""
    try:
        with pq.ParquetFile(path) as file:
            columns = flatten(file.schema_arrow.empty_table())
            for option, name in (("id", id_column), ("bytes", bytes_column)):
                if name not in columns.column_names:
                    raise ValueError(
                        f"`--{option}` must be a column of {path}; got {name}, "
                        f"and it has {', '.join(columns.column_names)}."
                    )
            kind = columns.schema.field(bytes_column).type
            if kind not in (pa.binary(), pa.large_binary()):
                raise ValueError(
                    f"`--bytes` must be a column of bytes; got {bytes_column} "
                    f"of {path}, of type {kind}."
                )
            groups = [
                file.read_row_group(i, [id_column])
                for i in range(file.num_row_groups)
            ]
    except (OSError, pa.ArrowException) as error:
        raise ValueError(
            f"`source` must have Parquet files; {path}: {one_line(error)}"
        ) from error
    return [
        {"file": str(path), "group": i, "names": text(flatten(ids)[id_column])}
        for i, ids in enumerate(groups)
    ]


def flatten(table):
    """A table whose columns in columns are its own, such as image.bytes."""
    while any(pa.types.is_struct(field.type) for field in table.schema):
        table = table.flatten()
    return table


def text(column):
    """The names in a column of any type, as text."""
    return [str(name) for name in column.to_pylist()]


def plan(groups, done, size):
    """What is to do, in parts of at most about `size` pictures.

    Of a source that is as it was, a part has the same pictures whatever is
    done, as only whole parts are: whoever classifies one writes the same file.

    Args:
        groups: What `read_source` found.
        done: Names that are done, a set.
        size: Pictures in a part.

    Returns:
        A list of such groups.
    """
    parts = []
    for group in groups:
        names = group["names"]
        # A worker reads a row group from its beginning, for each part again.
        most = max(size, -(-len(names) // SPLITS)) if group["file"] else size
        rest = [name for name in names if name not in done]
        parts += [
            group | {"names": rest[i : i + most]}
            for i in range(0, len(rest), most)
        ]
    return parts


class Output:
    """The folders `predictions` and `errors`, and what is done by them.

    A part is a file in each, of one name; that in `predictions` comes last and
    makes it count.

    Args:
        folder: Where they are.
        content: Of the .onnx file.
        top: Classes of each picture.
    """

    def __init__(self, folder, content, top):
        self.predictions = folder / "predictions"
        self.errors = folder / "errors"
        self.about = {
            b"model": hashlib.sha256(content).hexdigest().encode(),
            b"top": str(top).encode(),
        }

    def read_done(self):
        """The names of all pictures that are done, a set.

        Raises:
            ValueError: if another model, or a larger `--top`, was used.
        """
        done = set()
        parts = set()
        for path in sorted(self.predictions.glob("*.parquet")):
            done |= self._read(path)
            parts.add(path.name)
        for path in sorted(self.errors.glob("*.parquet")):
            if path.name in parts:
                done |= self._read(path)
            else:
                path.unlink()  # of a process that was killed in between
        for folder in (self.predictions, self.errors):
            for path in folder.glob(".*.new"):
                path.unlink(missing_ok=True)
        return done

    @contextlib.contextmanager
    def held(self):
        """The folders, made here and nowhere else, for this process alone.

        A machine that does not see them has not mounted them.

        Raises:
            ValueError: if another process writes there.
        """
        for folder in (self.predictions, self.errors):
            folder.mkdir(parents=True, exist_ok=True)
        with open(self.predictions.parent / ".lock", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ValueError(
                    "`output` must have one writer; another process writes to "
                    f"{self.predictions.parent}."
                ) from error
            yield

    def _read(self, path):
        """The names in one of the files."""
        try:
            table = pq.read_table(path, columns=["path"])
        except (OSError, KeyError, pa.ArrowException) as error:
            raise ValueError(
                f"`output` must have this script's files only; {path}: "
                f"{one_line(error)}"
            ) from error
        found = table.schema.metadata or {}
        if any(found.get(key) != value for key, value in self.about.items()):
            raise ValueError(
                "`output` must be empty, or made with the same model and "
                f"`--top`; {path} was not."
            )
        return set(table["path"].to_pylist())

    def write(self, names, predictions, errors):
        """Write a part.

        Args:
            names: Its pictures, of which it gets its own name.
            predictions: Tuples as in `PREDICTIONS`.
            errors: Tuples as in `ERRORS`.
        """
        digest = hashlib.sha256("\0".join(names).encode()).hexdigest()
        name = f"part-{digest[:16]}.parquet"
        self._write(self.errors / name, ERRORS, errors)
        self._write(self.predictions / name, PREDICTIONS, predictions)

    def _write(self, path, schema, rows):
        """Write a Parquet file that has its name once it is whole."""
        columns = zip(*rows, strict=True) if rows else [[]] * len(schema)
        arrays = [
            pa.array(column, field.type)
            for column, field in zip(columns, schema, strict=True)
        ]
        schema = schema.with_metadata(self.about)
        new = path.with_name(f".{uuid.uuid4().hex}.new")
        try:
            with open(new, "wb") as file:
                pq.write_table(
                    pa.Table.from_arrays(arrays, schema=schema), file
                )
                file.flush()
                os.fsync(file.fileno())
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)


class Worker:
    """A process of Ray with a model, which does part after part."""

    def __init__(self, arguments, content, output):
        import ray

        self.arguments = arguments
        self.model = Model(ray.get(content), arguments.threads)
        self.output = output

    def __call__(self, part):
        """Do a part; how many pictures were read or not, or what stopped it."""
        try:
            good, bad = self._classify(part)
        # Ray's own message does not have it.
        except (OSError, MemoryError, pa.ArrowException) as error:
            message = one_line(error) or type(error).__name__
            return {"good": 0, "bad": 0, "error": message}
        return {"good": good, "bad": bad, "error": ""}

    def _classify(self, part):
        """Classify a part and write it."""
        names = list(part["names"])
        predictions, errors = [], []
        if not self.arguments.source.exists():
            raise FileNotFoundError(
                f"{self.arguments.source} is not on this machine."
            )
        pictures = self._read(part, names, errors)
        while batch := list(
            itertools.islice(pictures, self.arguments.batch_size)
        ):
            scores = self.model([pixels for _, pixels in batch])
            predictions += [
                (name, *best(row, self.model.labels, self.arguments.top))
                for (name, _), row in zip(batch, scores, strict=True)
            ]
        self.output.write(names, predictions, errors)
        return len(predictions), len(errors)

    def _read(self, part, names, errors):
        """Names and pixels; what cannot be read goes to `errors`."""
        for name, source in self._sources(part, names):
            try:
                pixels = self.model.read(source, self.arguments.max_pixels)
            except ValueError as error:
                errors.append((name, str(error)))
            else:
                yield name, pixels

    def _sources(self, part, names):
        """Names, and paths or the bytes of Parquet's column."""
        if not part["file"]:
            for name in names:
                yield name, self.arguments.source / name
            return
        names = set(names)
        columns = [self.arguments.id, self.arguments.bytes]
        # Read as it goes: a row group of pictures may be gigabytes.
        with pq.ParquetFile(part["file"], buffer_size=1 << 20) as file:
            for rows in file.iter_batches(64, [part["group"]], columns):
                table = flatten(pa.Table.from_batches([rows]))
                found = text(table[columns[0]])
                for name, content in zip(found, table[columns[1]], strict=True):
                    if name in names:
                        yield name, content.as_py()


def best(probabilities, labels, top):
    """The last four columns of a row in `PREDICTIONS`."""
    order = np.argsort(-probabilities, kind="stable")[:top]
    names = [labels[i] for i in order]
    scores = [float(probabilities[i]) for i in order]
    return names[0], scores[0], names, scores


def classify(arguments, content, output, groups, parts):
    """Do all parts on Ray, and say so."""
    count = sum(len(group["names"]) for group in groups)
    waiting = sum(len(part["names"]) for part in parts)
    started = time.perf_counter()
    good = bad = 0
    if parts:
        for result in run_on_ray(arguments, content, output, parts):
            if result["error"]:
                raise ValueError(result["error"])
            good, bad = good + result["good"], bad + result["bad"]
            seconds = time.perf_counter() - started
            show_progress(
                f"{good + bad} of {waiting} pictures, "
                f"{(good + bad) / seconds:.0f} a second"
            )
        show_progress("")
    seconds = time.perf_counter() - started
    print(
        f"{count} pictures: {count - waiting} done before, {good} classified, "
        f"{bad} not readable, in {seconds:.1f} s"
    )
    print(f"{output.predictions}\n{output.errors}")


def check_complete(output, groups):
    """Compare what is written with what was asked for.

    Raises:
        ValueError: if pictures are in neither table.
    """
    names = {name for group in groups for name in group["names"]}
    if missing := len(names - output.read_done()):
        raise ValueError(
            f"{missing} of {len(names)} pictures are in neither table. All "
            f"machines must see {output.predictions.parent}; the same command "
            "goes on from here."
        )


def show_progress(line):
    """Replace the line that a person watches."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)


def run_on_ray(arguments, content, output, parts):
    """Results of `Worker`, as they come.

    Raises:
        ValueError: if a worker died several times.
    """
    workers = min(arguments.workers, len(parts))
    with connected(arguments, workers, len(content)) as ray:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.enable_auto_log_stats = False
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        # 2.64 will have another way to say `max_restarts`.
        warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
        results = ray.data.from_items(
            parts, override_num_blocks=len(parts)
        ).map(
            Worker,
            fn_constructor_args=[arguments, ray.put(content), output],
            compute=ray.data.ActorPoolStrategy(
                size=workers, max_tasks_in_flight_per_actor=1
            ),
            num_cpus=arguments.threads,
            # A picture that kills its worker would do it for ever.
            max_restarts=3,
            max_task_retries=3,
        )
        try:
            yield from results.iter_rows()
        except ray.exceptions.RayActorError as error:
            raise ValueError(
                "a worker died four times, perhaps of memory; a lower "
                "`--max-pixels` or fewer `--workers` need less. The same "
                "command goes on from here."
            ) from error


@contextlib.contextmanager
def connected(arguments, workers, size):
    """Ray: a cluster, or one of this machine, which leaves nothing."""
    os.environ["RAY_BACKEND_LOG_LEVEL"] = "fatal"
    options = {"logging_level": logging.ERROR, "log_to_driver": False}
    with contextlib.ExitStack() as stack:
        if arguments.address == "local":
            os.environ |= {
                # Its ports are open to the network.
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN": secrets.token_hex(32),
                # It would count its users, and asks three clouds whether this
                # machine is theirs.
                "RAY_USAGE_STATS_ENABLED": "0",
                "http_proxy": "http://127.0.0.1:9",
            }
            # Not TMPDIR: a socket's path has a hundred bytes at most.
            place = tempfile.TemporaryDirectory(
                prefix="ray-", dir="/tmp", ignore_cleanup_errors=True
            )
            options |= {
                "num_cpus": workers * arguments.threads,
                "object_store_memory": (1 << 27) + 2 * size,
                "include_dashboard": False,
                "_node_ip_address": "127.0.0.1",
                "_temp_dir": stack.enter_context(place),
            }
        import ray

        stack.callback(ray.shutdown)
        for tries in (2, 1, 0):
            try:
                with silence():
                    ray.init(address=arguments.address, **options)
                break
            except Exception as error:  # of many types
                ray.shutdown()
                if not tries:  # a busy machine may take more than its 30 s
                    raise ValueError(
                        f"Ray does not start: {one_line(error)}"
                    ) from error
        yield ray


@contextlib.contextmanager
def silence():
    """Nothing on standard error, not even from C++."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def one_line(error):
    """An error's message without the breaks in it."""
    return " ".join(str(error).split())


if __name__ == "__main__":
    main()
