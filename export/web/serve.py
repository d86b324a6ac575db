"""Serve this page on this machine, with the headers that it needs.

It needs Python's standard library only:

    python serve.py --port 8000

Threads in WebAssembly need headers, those in the file `_headers`, that
`python -m http.server` does not send.
"""

import argparse
import functools
import http.server
import pathlib
import sys

FOLDER = pathlib.Path(__file__).absolute().parent

# Types that browsers insist on; a system's own table may have others.
TYPES = {
    ".bmp": "image/bmp",
    ".css": "text/css; charset=utf-8",
    ".gif": "image/gif",
    ".html": "text/html; charset=utf-8",
    ".jpeg": "image/jpeg",
    ".jpg": "image/jpeg",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".mjs": "text/javascript; charset=utf-8",
    ".onnx": "application/octet-stream",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".wasm": "application/wasm",
    ".webp": "image/webp",
}


def main():
    """Serve until Ctrl+C; an error is one line."""
    arguments = parse_arguments()
    try:
        check_files(FOLDER)
        server = make_server(FOLDER, arguments.host, arguments.port)
    except (OSError, ValueError) as error:
        sys.exit(f"Error: {error}")
    with server:
        address = f"http://{arguments.host}:{server.server_port}/"
        print(f"{address} has the page; Ctrl+C ends it.", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


def parse_arguments(arguments=None):
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--port", type=int, default=8000, help="0 for any that is free"
    )
    parser.add_argument(
        "--host",
        default="localhost",
        help="other machines need https, which this does not speak",
    )
    return parser.parse_args(arguments)


def check_files(folder):
    """Refuse to serve a page that cannot work.

    Args:
        folder: The page's folder, a `pathlib.Path`.

    Raises:
        ValueError: if the model or the runtime is missing.

    Example:

    >>> check_files(pathlib.Path("export/web"))
    """
    for path, command in (
        ("node_modules/onnxruntime-web/dist/ort.wasm.min.mjs", "npm ci"),
        ("model/model.json", "python add_model.py"),
    ):
        if not (folder / path).is_file():
            raise ValueError(
                f"{folder} has no {path} yet; run `{command}` there, or "
                "`make web`."
            )


def make_server(folder, host="localhost", port=0):
    """A server of a folder, with the headers in its file `_headers`.

    Args:
        folder: The page's folder, a `pathlib.Path`.
        host: Name or address to listen on. Defaults to this machine alone.
        port: From 1 to 65535, or 0 for any that is free. Defaults to 0.

    Returns:
        A `Server`, not yet serving.

    Raises:
        ValueError: if there is no such port.
        OSError: if it cannot listen there.

    Example:

    >>> with make_server(FOLDER) as server:
    ...     server.serve_forever()
    """
    if port not in range(65536):
        raise ValueError(f"`--port` must be from 0 to 65535; got {port}.")
    handler = functools.partial(
        Handler, directory=str(folder), headers=read_headers(folder)
    )
    try:
        return Server((host, port), handler)
    except OSError as error:
        raise OSError(
            f"`--host` and `--port` must be free to listen on; {host}:{port}: "
            f"{error.strerror}."
        ) from error


def read_headers(folder):
    """Names and values in `_headers`, a list of pairs.

    Args:
        folder: The page's folder, a `pathlib.Path`.

    Example:

    >>> dict(read_headers(FOLDER))["X-Content-Type-Options"]
    'nosniff'
    """
    lines = (folder / "_headers").read_text().splitlines()
    pairs = [line.partition(":") for line in lines if line.startswith("  ")]
    return [(name.strip(), value.strip()) for name, _, value in pairs]


class Server(http.server.ThreadingHTTPServer):
    """A thread for each connection; browsers drop theirs at any time."""

    def handle_error(self, request, client_address):
        """Say nothing of a connection that is gone."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files of one folder; no lists of folders, no hidden files."""

    protocol_version = "HTTP/1.1"
    extensions_map = TYPES

    def __init__(self, *arguments, headers, **options):
        self.sent_with_all = headers
        super().__init__(*arguments, **options)

    def end_headers(self):
        """Add what `_headers` says."""
        for name, value in self.sent_with_all:
            self.send_header(name, value)
        super().end_headers()

    def send_head(self):
        """Refuse hidden files, such as those of npm."""
        path = pathlib.Path(self.translate_path(self.path))
        parts = path.relative_to(self.directory).parts
        hidden = any(part.startswith(".") for part in parts)
        if hidden or "\0" in str(path):
            self.send_error(404)
            return None
        return super().send_head()

    def list_directory(self, path):
        """A folder without index.html is no page."""
        self.send_error(404)

    def guess_type(self, path):
        """Other files get a type that no browser runs."""
        return TYPES.get(
            pathlib.PurePath(path).suffix, "application/octet-stream"
        )

    def log_message(self, *arguments):
        """Say nothing of each request."""


if __name__ == "__main__":
    main()
