"""Serve an exported ONNX file or SavedModel with KServe's model server.

python serve.py --model model.onnx

It speaks the Open Inference Protocol: REST on port 8080, gRPC on port 8081.
"""

import argparse
import os
import sys

from runtimes import open_model


def main():
    """Serve what the command line says; an error is one line."""
    options = parse_arguments()
    try:
        check_options(options)
        network = open_model(options.model, options.threads)
    except (ModuleNotFoundError, OSError, ValueError) as error:
        sys.exit(f"Error: {' '.join(str(error).split())}")
    from server import serve  # seconds, which errors need not wait for

    serve(network, options)


def parse_arguments():
    """The command line.

    Returns:
        The options by name.
    """
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--model", required=True, help="an ONNX file or a SavedModel's folder")
    add("--name", default="resnext", help="in URLs; resnext by default")
    for name, default, text in (
        ("http-port", 8080, "port of REST and metrics"),
        ("grpc-port", 8081, "port of gRPC"),
        (
            "threads",
            len(os.sched_getaffinity(0)),
            "threads of a batch, and files decoded at once",
        ),
        ("max-batch", 16, "most pictures that run together"),
        ("max-waiting", 256, "most pictures under way; beyond: status 503"),
        ("max-pictures", 64, "most pictures of a request"),
        ("max-pixels", 50_000_000, "most pixels of an image file"),
        ("max-megabytes", 16, "most megabytes of a request"),
        ("grace-seconds", 30, "to end what is under way when it is stopped"),
    ):
        text = f"{text}; {default:,} by default"
        add(f"--{name}", type=int, default=default, help=text)
    return parser.parse_args()


def check_options(options):
    """Refuse numbers out of range, and requests that could never be accepted.

    Args:
        options: Those of the command line.

    Raises:
        ValueError: if there are such.
    """
    for name, value in vars(options).items():
        if isinstance(value, int) and value < 1:
            raise ValueError(
                f"`--{name.replace('_', '-')}` must be 1 or more; got {value}."
            )
    for name in ("http_port", "grpc_port"):
        if (port := getattr(options, name)) > 65535:
            raise ValueError(
                f"`--{name.replace('_', '-')}` must be 65535 or less; got "
                f"{port}."
            )
    if options.max_waiting < options.max_pictures:
        raise ValueError(
            "`--max-waiting` must be `--max-pictures` or more, "
            f"{options.max_pictures}; got {options.max_waiting}."
        )


if __name__ == "__main__":
    main()
