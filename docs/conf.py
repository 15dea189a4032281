"""Configuration of the documentation: `make docs`."""

import re
import subprocess
import sys
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx import addnodes

import opu

project = "OpenOPU"
smartquotes = False  # options start with two hyphens
author = "The OpenOPU developers"
copyright = "the OpenOPU developers, BSD-3-Clause"
release = version = opu.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = "OpenOPU"
html_show_sphinx = False
html_math_renderer = "mathml"

default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring = False
napoleon_use_rtype = False

HERE = Path(__file__).parent
COMMANDS = {"opu": "opu.cli.app", "dfa": "dfa_client.cli"}


def write_command_pages(_app):
    """Write the reference of the command line from the commands themselves."""
    folder = HERE / "reference" / "commands"
    folder.mkdir(exist_ok=True)
    for name, module in COMMANDS.items():
        arguments = ["-m", "typer", module, "utils", "docs", "--name", name, "--output", folder / f"{name}.md"]
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, timeout=60)


def write_math(translator, node):
    """Write a formula as MathML, which browsers show without any script from elsewhere."""
    tex = re.sub(r"\\[bB]igg?[lr]?(?![a-z])", "", node.astext())  # MathML stretches brackets by itself
    translator.body.append(tex2mathml(tex, as_block=isinstance(node, nodes.math_block)))
    raise nodes.SkipNode


def unlink_sizes(_app, doctree):
    """Take `n_outputs` in the shape of an array for a word: it is no reference to the property of some class."""
    for reference in list(doctree.findall(addnodes.pending_xref)):
        if reference["reftarget"].startswith("n_"):
            reference.replace_self(reference.children)


def setup(app):
    """Register with Sphinx."""
    app.add_html_math_renderer("mathml", (write_math, None), (write_math, None))
    app.connect("builder-inited", write_command_pages)
    app.connect("doctree-read", unlink_sizes)
