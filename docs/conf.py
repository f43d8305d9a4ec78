"""The documentation site, made by Sphinx: `sphinx-build -W docs docs/_build`."""

import ast
import configparser
import inspect
import pathlib
import re
import textwrap

from sphinx.util import logging

import zoneout_jax

ROOT = pathlib.Path(__file__).parents[1]
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")
URLS = dict(line.split(" = ") for line in SETUP["metadata"]["project_urls"].split("\n") if line)
REPOSITORY = URLS["Source"]

project = SETUP["metadata"]["name"]
author = SETUP["metadata"]["author"]
project_copyright = author
version = release = zoneout_jax.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
default_role = "py:obj"  # of docstrings, where code is in single backticks
highlight_language = "none"  # of blocks that name no language
myst_heading_anchors = 4
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings say shapes and types
python_maximum_signature_line_length = 80
napoleon_attr_annotations = False
napoleon_custom_sections = [("Attributes", "params_style")]  # of dataclasses: their arguments
copybutton_prompt_text = ">>> |... "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = f"{project} {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "source_repository": REPOSITORY,
    "source_branch": "main",
    "source_directory": "docs/",
}
# Not there before the first release.
linkcheck_ignore = [f"{re.escape(REPOSITORY)}.*"]

CODE = re.compile(r"(?<![`:])`([^`]+)`(?!`)")
SECTIONS = ("Args", "Attributes", "Example", "Raises", "Returns", "Yields")


def mark_blocks(app, what, name, obj, options, lines):
    """Marks indented blocks of a docstring, equations or code, as such.

    reStructuredText would take them for quotations and join their lines.
    """
    marked, block, section = [], [], False
    for line in [*lines, "end"]:
        section = line.rstrip(":") in SECTIONS or section and (not line or line.startswith(" "))
        inside = line.startswith("    ") if not section else False
        if inside or block and not line:
            block.append(line)
            continue
        if block:  # has ended
            code = textwrap.dedent("\n".join(block)).strip("\n")
            try:
                ast.parse(code)
                language = "python"
            except SyntaxError:
                language = "text"
            marked += ["", f".. code-block:: {language}", ""]
            marked += [*textwrap.indent(code, "    ").split("\n"), ""]
            block = []
        is_code = line.lstrip().startswith((">>>", "..."))
        marked.append(line if is_code else CODE.sub(literal, line.replace("|", r"\|")))
    lines[:] = marked[:-1]
    if what in ("attribute", "data", "property") and lines:
        lines[0] = f":{lines[0]}"  # what stands before the first colon is no type


def literal(code):
    """Marks code that names nothing that the reference could link to as literal."""
    return code[0] if re.fullmatch(r"[\w.]+", code[1]) else f"`{code[0]}`"


def show_defaults(app, what, name, obj, options, signature, result):
    """Gives modules of NNX, whose metaclass takes anything, the signature of their constructor."""
    if what != "class" or signature != "(*args, **kwargs)":
        return None
    own = inspect.signature(obj.__init__)
    parameters = [p.replace(annotation=p.empty) for p in own.parameters.values()]
    return str(own.replace(parameters=parameters[1:], return_annotation=own.empty)), None


def point_to_repository(app, docname, source):
    """Turns links to files of the repository that are no pages into addresses."""
    docs = ROOT / "docs"

    def address(link):
        path, hash, anchor = link[1].partition("#")
        file = ((docs / docname).parent / path).resolve()
        if not file.exists():
            logging.getLogger(__name__).warning("%s: there is no %s", docname, path)
        if file.is_relative_to(docs):
            return link[0]
        kind = "tree" if file.is_dir() else "blob"
        return f"]({REPOSITORY}/{kind}/main/{file.relative_to(ROOT).as_posix()}{hash}{anchor})"

    source[0] = re.sub(r"\]\((\.\./[^)\s]*)(?<!\.png)\)", address, source[0])


def setup(app):
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", mark_blocks, priority=400)  # before napoleon
    app.connect("autodoc-process-signature", show_defaults)
    app.connect("source-read", point_to_repository)
