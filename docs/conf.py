"""How `make docs` builds the pages: the Markdown files where they lie, and the reference from the docstrings.

The source folder is the repository, so that a relative link means here what it means on the forge."""

import re
from importlib import import_module
from pathlib import Path
from types import ModuleType

from sphinx.application import Sphinx
from sphinx.util import logging

import isoconv

project, author, copyright = "isoconv", "the isoconv authors", "the isoconv authors, MIT licence"
release = version = isoconv.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**.md", "benchmarks/**.md"]
highlight_language = "text"  # a block without a language is what a program printed
html_theme, html_title = "furo", f"isoconv {version}"
html_show_sphinx = html_copy_source = False
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_inherit_docstrings = False
autodoc_default_options = {"members": True, "no-value": True}
python_use_unqualified_type_names = True
napoleon_use_rtype = False
nitpicky = True  # a reference to a name that is not documented fails the build
suppress_warnings = ["ref.python"]  # the builtin `type` in an annotation is none of our attributes of that name
# but not torch's, numpy's, private ones
nitpick_ignore_regex = [("py:class", r"(?!isoconv\.).*|.*\._\w+|.*\.(Net|SREOptions)")]

REFERENCE = (
    "isoconv",
    "layers",
    "models",
    "convert",
    "symmetry",
    "data",
    "tasks",
    "readers",
    "training",
    "evaluation",
    "study",
    "deploy",
)
TUTORIALS = (
    "drop-in-layer",
    "convert-your-network",
    "train-on-medmnist",
    "your-own-images",
    "see-directions",
    "deploy-with-onnx",
)
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
MEASURED = sorted(path.relative_to(RESULTS).with_suffix("").as_posix() for path in RESULTS.rglob("*.md"))
CONTENTS = {
    "Tutorials": [f"/docs/tutorials/{page}" for page in TUTORIALS],
    "How to": ["/docs/how-to/*"],
    "Concepts": ["/docs/concepts/*"],
    "Results": ["/docs/results", "/docs/reproducing", "/docs/official-defects"],
    "Reference": [f"/docs/reference/{page}" for page in REFERENCE],
    "Measurements": [f"{name} </benchmarks/results/{name}>" for name in MEASURED],  # several have the same title
    "Project": ["/docs/dependencies", "/docs/platforms", "/CHANGELOG", "/CONTRIBUTING", "README </README>"],
}


def add_contents(_: Sphinx, page: str, source: list[str]) -> None:
    """Put the navigation into the first page, where on the forge it would show as code."""
    if page == root_doc:
        for title, entries in CONTENTS.items():
            listed = "\n".join(entries)
            source[0] += f"\n```{{toctree}}\n:hidden:\n:glob:\n:caption: {title}\n\n{listed}\n```\n"


def spell_out(_app: Sphinx, what: str, _name: str, _object: object, _options: object, lines: list[str]) -> None:
    """``(N, C, *spatial)`` opens no emphasis, and what a field's docstring has before a colon is not its type."""
    lines[:] = [""] * (what == "attribute") + [re.sub(r"(?<=[ (])\*(?=\w+\))", r"\\*", line) for line in lines]


def check_names(app: Sphinx, error: Exception | None) -> None:
    """A public name that the reference lacks fails the build."""
    python = app.env.domains["py"]
    known = {entry[0] for entry in python.get_objects()}
    for module in python.data["modules"] if error is None else ():
        for name in getattr(public := import_module(module), "__all__", ()):
            value = getattr(public, name)
            homes = {module, getattr(value, "__module__", module)}
            if not isinstance(value, ModuleType) and not any(f"{home}.{name}" in known for home in homes):
                logging.getLogger(__name__).warning("%s.%s is not in the reference", module, name)


def setup(app: Sphinx) -> None:
    app.connect("source-read", add_contents)
    app.connect("autodoc-process-docstring", spell_out, priority=400)  # before napoleon, at 500
    app.connect("build-finished", check_names)
