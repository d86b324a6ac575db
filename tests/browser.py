"""Chromium, for tests of pages."""

import contextlib
import json
import pathlib
import shutil
import subprocess

import pytest

NODE = shutil.which("node")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
# Where `make web-modules` puts playwright-core and axe-core.
WEB = pathlib.Path(__file__).parents[1] / "export/web"
MODULES = WEB / "node_modules"


class Browser:
    """Chromium behind tests/web_page.mjs; it says that it has two cores."""

    def __init__(self):
        script = pathlib.Path(__file__).with_name("web_page.mjs")
        self._process = subprocess.Popen(
            [NODE, script, WEB, CHROMIUM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._shared = None

    def __call__(self, command, **given):
        if command == "open":
            self._shared = None
        line = json.dumps({"command": command, **given}, default=str)
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        reply = json.loads(self._process.stdout.readline())
        assert "error" not in reply, reply["error"]
        return reply["result"]

    def share(self, url):
        """A page that is ready, opened unless the test before left it open."""
        if self._shared != url:
            self("open", url=url)
            self._shared = url
        self.ready()

    def page(self, method, *arguments):
        """Any of playwright's methods of a page."""
        return self("call", method=method, arguments=arguments)

    def evaluate(self, script, *arguments):
        """The value of an expression, or of a function with arguments."""
        if arguments:
            given = ", ".join(map(json.dumps, arguments))
            script = f"({script})({given})"
        return self.page("evaluate", script)

    def text(self, name):
        return self.page("textContent", f"#{name}")

    def wait_for(self, name, words):
        """The text of an element, once it has these words."""
        found = f"document.getElementById({json.dumps(name)})?.textContent"
        self.until(f"{found}.includes({json.dumps(words)})")
        return self.text(name)

    def until(self, script):
        """Wait for an expression to be true."""
        self("until", script=script)

    def ready(self):
        """The state of the page of export/web, once it can answer."""
        return self.wait_for("state", "Ready")

    @contextlib.contextmanager
    def one_answer(self):
        """A function that gives the answer to what happens in the context."""
        count = self.evaluate("answers.length")
        yield lambda: self.evaluate("answers.at(-1)")
        self.until(f"answers.length > {count}")

    def close(self):
        with self._process:
            self._process.stdin.close()


@contextlib.contextmanager
def open_browser():
    """A `Browser`; skips the test where there can be none."""
    if NODE is None or not (MODULES / "playwright-core").is_dir():
        pytest.skip("export/web has no node_modules; run make web-modules")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on the PATH")
    browser = Browser()
    try:
        yield browser
    finally:
        browser.close()
