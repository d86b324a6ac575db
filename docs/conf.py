"""Sphinx's settings for the site: `make docs`.

The sources are where readers of the repository expect them, so that its root
is the source directory: pages in docs/, the READMEs, and the notebooks.
"""

import html
import os
import pathlib
import re
import subprocess
import sys

import docutils.nodes
from docutils.utils.math.latex2mathml import tex2mathml

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import keras_resnext  # noqa: E402
from benchmarks import report  # noqa: E402
from keras_resnext.files import staged  # noqa: E402

project = "keras_resnext"
release = keras_resnext.__version__
root_doc = "docs/index"
include_patterns = [
    *("docs/**.md", "notebooks/*.ipynb", "CHANGELOG.md", "CONTRIBUTING.md"),
    *("keras_resnext/*/README.md", "export/*/README.md"),
    *("benchmarks/NOTES.md", "benchmarks/results/*.md"),
]
exclude_patterns = ["**/node_modules", "build", ".*"]
extensions = [
    *("sphinx.ext.autodoc", "sphinx.ext.napoleon"),
    *("myst_nb", "sphinx_copybutton"),
]

html_theme = "furo"
html_title = "keras_resnext"
html_extra_path = ["redirect"]
html_static_path = ["static"]
html_js_files = ["accessible.js"]
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#7a3e00"},
}
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False

# Headings get anchors as GitHub makes them.
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "dollarmath"]
html_math_renderer = "mathml"
smartquotes_action = "qe"  # quotes and dots, but `--option` has two hyphens
# Commands and their output, which Pygments calls pycon and console.
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# Notebooks are executed once for each state of theirs.
nb_execution_mode = os.environ.get("NOTEBOOKS", "cache")
nb_execution_cache_path = str(ROOT / "build" / "notebooks")
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_output_stderr = "remove"  # TensorFlow's lines about the machine
nb_render_markdown_format = "gfm"  # outputs have tables

# Docstrings write `names` as Markdown does.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # they are in the docstrings, in words
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Call arguments", "params_style")]


def write_command_line(app):
    """What `--help` says of each command, as a page."""
    text = subprocess.run(
        [
            *(sys.executable, "-m", "typer", "keras_resnext.cli.app"),
            *("utils", "docs", "--name", "keras-resnext"),
        ],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    text = text.partition("\n")[2]  # without its title
    # Typer cuts summaries off, which are there in full further down.
    text = re.sub(r"\*\*Commands\*\*:\n\n(\* .*\n)+", "", text)
    # Its HTML, in which names in angle brackets would be tags.
    text = re.sub(r"`[^`\n]*`", lambda code: html.unescape(code[0]), text)
    write_page("command-line.md", text)


def write_figures(app):
    """Tables of what the package has and what was measured."""
    head = ("network", "weights", "for", "top-1", "pixels", "licence")
    rows = [f"| {' | '.join(head)} |", "|---|---|---|--:|--:|---|"]
    records = keras_resnext.list_weights()
    models = list(dict.fromkeys(record.model for record in records))
    for record in sorted(records, key=lambda r: models.index(r.model)):
        tag = f"`{record.tag}`" + ", no top" * (not record.include_top)
        top1 = "" if record.top1 is None else f"{record.top1:.2f}"
        cells = (
            *(record.model, tag, record.dataset, top1),
            *(f"{record.image_size}", record.license),
        )
        rows.append(f"| {' | '.join(cells)} |")
    write_page("weights.md", "\n".join(rows) + "\n")
    for name, results in report.stored_results().items():
        write_page(f"times-{name}.md", report.times_table(results))


def write_page(name, text):
    """A page that others include; builds side by side share it."""
    with staged(ROOT / "build" / name, overwrite=True) as page:
        page.write_text(text)


def write_formula(display):
    """A visitor of formulas, which browsers draw by themselves."""

    def visit(translator, node):
        formula = tex2mathml(node.astext(), as_block=display == "block")
        translator.body.append(formula)
        raise docutils.nodes.SkipNode

    return visit, None


def write_tables(app, what, name, thing, options, lines):
    """Tables of docstrings, in Markdown, as Sphinx has them."""
    rows = [
        [cell.strip() for cell in line.strip().strip("|").split("|")]
        for line in lines
        if line.startswith("|")
    ]
    if not rows:
        return
    first = next(i for i, line in enumerate(lines) if line.startswith("|"))
    table = [".. list-table::", "   :header-rows: 1", ""]
    for first_cell, *others in rows[:1] + rows[2:]:
        table.append(f"   * - {first_cell}")
        table += [f"     - {cell}" for cell in others]
    lines[first : first + len(rows)] = [*table, ""]


def setup(app):
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", write_tables)
    app.connect("builder-inited", write_command_line)
    app.connect("builder-inited", write_figures)
    app.add_html_math_renderer(
        "mathml", write_formula("inline"), write_formula("block")
    )
