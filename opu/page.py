"""Reports as pages: one HTML file that needs nothing else, with tables, pictures and figures inside."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable, Sequence
from html import escape
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from opu.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

__all__ = ["NO_FIGURES", "can_draw", "html_page", "html_table", "new_figure", "picture", "svg"]

NO_FIGURES = "Figures need Matplotlib, which is not installed: pip install 'openopu[plots]'."

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.55 system-ui, "DejaVu Sans", sans-serif; color: #1f2937; max-width: 60rem; margin: 0 auto;
       padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; margin: 0 0 .3rem; } h2 { font-size: 1.25rem; margin: 2.6rem 0 .6rem; }
h3 { font-size: 1.05rem; margin: 2rem 0 .4rem; }
p { max-width: 46rem; } .lead { font-size: 1.08rem; color: #374151; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
th { text-align: left; border-bottom: 2px solid #d1d5db; padding: .4rem .7rem .4rem 0; white-space: nowrap; }
td { border-bottom: 1px solid #e5e7eb; padding: .4rem .7rem .4rem 0; vertical-align: top; }
.numbers { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1.5rem 0; }
.numbers div { border: 1px solid #e5e7eb; border-radius: .6rem; padding: .8rem 1rem; flex: 1; white-space: nowrap; }
.numbers b { display: block; font-size: 1.55rem; } .numbers span { color: #6b7280; font-size: .85rem; }
figure { margin: 1rem 0; } figure svg, figure img { width: 100%; height: auto; }
figcaption { color: #6b7280; font-size: .88rem; }
.pair { display: grid; grid-template-columns: 1fr 1.45fr; gap: 1.5rem; align-items: end; }
.passed { color: #047857; font-weight: 600; } .missed { color: #b91c1c; font-weight: 600; }
.finding { border-left: 4px solid #b91c1c; background: #fef2f2; padding: .6rem .9rem; margin: .6rem 0; }
footer { margin-top: 3rem; color: #6b7280; font-size: .85rem; }
@media (max-width: 40rem) { .pair { grid-template-columns: 1fr; } }
"""


def html_page(title: str, heading: str, lead: str, sections: Iterable[str], footer: str) -> str:
    """Return a complete page.

    Parameters
    ----------
    title, heading, lead : str
        Plain text.
    sections : iterable of str
        HTML.
    footer : str
        HTML.

    Examples
    --------
    >>> html_page("Light", "All is well", "So we think.", ["<p>It is.</p>"], "").startswith("<!doctype html>")
    True
    """
    return (
        "<!doctype html>\n"
        '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>\n"
        f"<h1>{escape(heading)}</h1>\n"
        f'<p class="lead">{escape(lead)}</p>\n' + "\n".join(sections) + f"\n<footer>{footer}</footer>\n</body></html>\n"
    )


def html_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of plain text; the cells `passed` and `MISSED` are coloured.

    Examples
    --------
    >>> "<td>&lt;b&gt;</td>" in html_table(["Column"], [["<b>"]])
    True
    """
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(_cell(cell) for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(text: str) -> str:
    verdict = {"passed": ' class="passed"', "MISSED": ' class="missed"'}.get(text, "")
    return f"<td{verdict}>{escape(text)}</td>"


def can_draw() -> bool:
    """Whether Matplotlib is installed (the extra `plots`)."""
    return find_spec("matplotlib") is not None


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure of a size in inches, with one pair of axes in the style of the reports.

    Raises
    ------
    MissingExtraError
        Matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(
            "Figures need Matplotlib.", "Install the extra: pip install 'openopu[plots]'."
        ) from error
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def svg(figure: Figure, name: str) -> str:
    """Draw a figure as part of a page; its name keeps its identifiers apart from those of others."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\1{name}-", text[text.index("<svg") :])


def picture(counts: NDArray[Any], *, alt: str, enlarge: int = 4) -> str:
    """Return the `img` of camera counts, dark to bright, shape (rows, columns)."""
    from matplotlib.image import imsave

    enlarged = np.kron(counts, np.ones((enlarge, enlarge), dtype=counts.dtype))
    buffer = io.BytesIO()
    top = max(float(np.percentile(counts, 99.5)), 1e-9)
    imsave(buffer, enlarged, cmap="inferno", vmin=0, vmax=top, format="png")
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
