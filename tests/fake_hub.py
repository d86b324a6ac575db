"""A stand-in for the Hugging Face Hub, for its real client.

It keeps repositories in memory and speaks as much of the Hub's protocol as
pushing and loading need: tokens, repositories, large files over LFS, commits
and downloads. It is a fake: of the Hub's own checks it has only those below,
and large files take the client's LFS path, not Xet.
"""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
import urllib.parse

TOKEN = "hf_may_write"
_LARGE = (".h5", ".safetensors", ".tflite", ".onnx", ".png")


class FakeHub:
    """The server. Use as a context.

    `faults` are applied to requests whose path contains a key: an HTTP status
    to answer, `"cut"` to close the connection without an answer, or `"lost"`
    to do what was asked and then close it.
    """

    def __init__(self):
        self.repositories, self.blobs, self.titles = {}, {}, {}
        self.faults, self.requests, self.headers = {}, [], []
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self):
                hub.answer(self)

            do_GET = do_HEAD = do_POST = do_PUT = _answer

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def files(self, name, revision="main"):
        """Names and contents of a repository's files at a revision."""
        commits = self.repositories[name]["commits"]
        if revision == "main":
            return commits[-1][1] if commits else {}
        return dict(commits)[revision]

    def answer(self, handler):
        """Answer one request."""
        body = _read_body(handler)
        path = urllib.parse.unquote(urllib.parse.urlsplit(handler.path).path)
        self.requests.append((handler.command, path))
        self.headers.append(dict(handler.headers))
        for part, fault in self.faults.items():
            if part in path:
                if fault == "lost":
                    handler.lost = True
                    continue
                if fault == "cut":
                    handler.close_connection = True
                    return
                self.send(handler, fault, b"{}")
                return
        for pattern, answer, needs_token in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match:
                token = handler.headers["Authorization"]
                if needs_token and token != f"Bearer {TOKEN}":
                    self.send(handler, 401, b'{"error": "Bad token"}')
                else:
                    answer(self, handler, body, **match.groupdict())
                return
        self.send(handler, 404, b"{}")

    def send(self, handler, status, body, **headers):
        """Send an answer; a dict as JSON."""
        if getattr(handler, "lost", False):
            handler.close_connection = True
            return
        if isinstance(body, dict):
            body = json.dumps(body).encode()
        # The client may have gone.
        with contextlib.suppress(ConnectionError):
            handler.send_response(status)
            handler.send_header("Content-Length", str(len(body)))
            for name, value in headers.items():
                handler.send_header(name.replace("_", "-"), value)
            handler.end_headers()
            if handler.command != "HEAD":
                handler.wfile.write(body)

    def whoami(self, handler, body):
        self.send(handler, 200, {"name": "user", "type": "user"})

    def validate(self, handler, body):
        content = json.loads(body)["content"]
        errors = [] if content.startswith("---\n") else [{"message": "no YAML"}]
        status = 400 if errors else 200
        self.send(handler, status, {"errors": errors, "warnings": []})

    def create(self, handler, body):
        about = json.loads(body)
        name = f"{about.get('organization') or 'user'}/{about['name']}"
        if name in self.repositories:
            self.send(handler, 409, {"error": "it exists"})
            return
        private = about.get("private") or about.get("visibility") == "private"
        self.repositories[name] = {"private": private, "commits": []}
        first = {".gitattributes": b"*.h5 filter=lfs\n"}
        self.repositories[name]["commits"].append((_sha(name, 0), first))
        self.send(handler, 200, {"url": f"{self.address}/{name}"})

    def info(self, handler, body, name, revision="main"):
        commit = self.commit_of(handler, name, revision)
        if commit is None:
            return
        sha, files = commit
        self.send(
            handler,
            200,
            {
                "id": name,
                "sha": sha,
                "private": self.repositories[name]["private"],
                "siblings": [{"rfilename": file} for file in files],
                "tags": [],
                "downloads": 0,
            },
        )

    def commit_of(self, handler, name, revision):
        """A commit and its files, or `None` after an error was sent."""
        token = handler.headers["Authorization"]
        if token and token != f"Bearer {TOKEN}":
            self.send(handler, 401, {"error": "Bad token"})
            return None
        if name not in self.repositories or (
            self.repositories[name]["private"] and not token
        ):
            self.send(handler, 404, b"{}", X_Error_Code="RepoNotFound")
            return None
        commits = self.repositories[name]["commits"]
        if revision in ("main", None):
            return commits[-1]
        if revision not in dict(commits):
            self.send(handler, 404, b"{}", X_Error_Code="RevisionNotFound")
            return None
        return revision, dict(commits)[revision]

    def commits(self, handler, body, name):
        listing = [
            {
                "id": sha,
                "title": self.titles.get(sha, ""),
                "authors": [],
                "date": "2026-11-26T00:00:00.000Z",
                "message": "",
            }
            for sha, _ in reversed(self.repositories[name]["commits"])
        ]
        self.send(handler, 200, json.dumps(listing).encode())

    def preupload(self, handler, body, name):
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs"
                if file["path"].endswith(_LARGE)
                else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        self.send(handler, 200, {"files": files})

    def batch(self, handler, body, name):
        objects = [
            {
                "oid": blob["oid"],
                "size": blob["size"],
                "actions": {
                    "upload": {"href": f"{self.address}/lfs/{blob['oid']}"}
                },
            }
            for blob in json.loads(body)["objects"]
        ]
        self.send(handler, 200, {"transfer": "basic", "objects": objects})

    def upload(self, handler, body, oid):
        # A cut connection ends the body early: never taken for the whole.
        if hashlib.sha256(body).hexdigest() != oid:
            self.send(handler, 400, b"{}")
            return
        self.blobs[oid] = body
        self.send(handler, 200, b"")

    def commit(self, handler, body, name):
        """All of a commit, or nothing."""
        commits = self.repositories[name]["commits"]
        files = dict(commits[-1][1])
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                title = value["summary"]
                if value.get("parentCommit", commits[-1][0]) != commits[-1][0]:
                    self.send(handler, 412, {"error": "the branch moved"})
                    return
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.blobs[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        sha = _sha(name, len(commits))
        commits.append((sha, files))
        self.titles[sha] = title
        self.send(
            handler,
            200,
            {
                "success": True,
                "commitOid": sha,
                "commitUrl": f"{self.address}/{name}/commit/{sha}",
            },
        )

    def tree(self, handler, body, name, revision):
        commit = self.commit_of(handler, name, revision)
        if commit is None:
            return
        listing = [
            {
                "type": "file",
                "path": path,
                "size": len(content),
                "oid": hashlib.sha1(content).hexdigest(),
            }
            for path, content in commit[1].items()
        ]
        self.send(handler, 200, json.dumps(listing).encode())

    def resolve(self, handler, body, name, revision, file):
        commit = self.commit_of(handler, name, revision)
        if commit is None:
            return
        sha, files = commit
        if file not in files:
            self.send(
                handler,
                404,
                b"{}",
                X_Error_Code="EntryNotFound",
                X_Repo_Commit=sha,
            )
            return
        content = files[file]
        # Large files are known by SHA-256, others by Git's SHA-1.
        kind = hashlib.sha256 if file.endswith(_LARGE) else hashlib.sha1
        self.send(
            handler,
            200,
            content,
            ETag=f'"{kind(content).hexdigest()}"',
            X_Repo_Commit=sha,
        )


def _read_body(handler):
    """The body of a request; that of a stream comes in chunks."""
    if handler.headers["Transfer-Encoding"] != "chunked":
        return handler.rfile.read(int(handler.headers["Content-Length"] or 0))
    chunks = []
    while size := int(handler.rfile.readline(), 16):
        chunks.append(handler.rfile.read(size))
        handler.rfile.readline()
    handler.rfile.readline()
    return b"".join(chunks)


def _sha(name, number):
    """The name of a commit."""
    return hashlib.sha1(f"{name} {number}".encode()).hexdigest()


_NAME = r"(?P<name>[\w.-]+/[\w.-]+)"
# Path, what answers, and whether it needs the token.
_ROUTES = [
    (r"/api/whoami-v2", FakeHub.whoami, True),
    (r"/api/validate-yaml", FakeHub.validate, False),
    (r"/api/repos/create", FakeHub.create, True),
    (rf"/api/models/{_NAME}", FakeHub.info, False),
    (rf"/api/models/{_NAME}/revision/(?P<revision>.+)", FakeHub.info, False),
    (rf"/api/models/{_NAME}/tree/(?P<revision>[^/]+)", FakeHub.tree, False),
    (rf"/api/models/{_NAME}/commits/main", FakeHub.commits, False),
    (rf"/api/models/{_NAME}/preupload/main", FakeHub.preupload, True),
    (rf"/api/models/{_NAME}/commit/main", FakeHub.commit, True),
    (rf"/{_NAME}\.git/info/lfs/objects/batch", FakeHub.batch, True),
    (r"/lfs/(?P<oid>[0-9a-f]{64})", FakeHub.upload, False),
    (
        rf"/{_NAME}/resolve/(?P<revision>.+)/(?P<file>[^/]+)",
        FakeHub.resolve,
        False,
    ),
]
