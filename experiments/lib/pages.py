"""A page of text, tables and pictures, as Markdown or as a single HTML file."""

import base64
import dataclasses
import html
import os
import pathlib
import re
from collections.abc import Sequence

from zoneout_jax.training import markdown_table

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: auto; padding: 1rem; }
body { color: #222; background: #fff; } h2 { margin-top: 3rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; margin: 1rem 0; }
td, th { border-bottom: 1px solid #ddd; padding: .3rem .7rem; text-align: left; }
table { font-size: 90%; } td { vertical-align: top; min-width: 4rem; }
code { font-size: 90%; overflow-wrap: anywhere; } td code { white-space: nowrap; }
svg, img { max-width: 100%; height: auto; display: block; }
"""


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture.

    Attributes:
      title: alternative text.
      file: a PNG file.
      svg: the picture as SVG text, for HTML.
    """

    title: str
    file: pathlib.Path | None = None
    svg: str | None = None


Block = str | Picture | list[list[str]]
"""A heading or a paragraph of Markdown, a picture, or the lines of a table, its header first."""


def to_markdown(blocks: Sequence[Block], out: pathlib.Path) -> str:
    """Formats blocks as Markdown for the file `out`; links are relative to its folder."""

    def relative(path: str | pathlib.Path) -> str:
        return pathlib.Path(os.path.relpath(path, out.parent)).as_posix().replace(" ", "%20")

    def text(block: Block) -> str:
        if isinstance(block, Picture):
            return f"![{block.title}]({relative(block.file)})" if block.file else ""
        if isinstance(block, str):
            return re.sub(r"\]\((/.*?)\)", lambda link: f"]({relative(link[1])})", block)
        header, *lines = [[text(cell.replace("|", r"\|")) for cell in line] for line in block]
        return markdown_table(header, lines).rstrip("\n")

    return "\n\n".join(filter(None, map(text, blocks))) + "\n"


def to_html(blocks: Sequence[Block]) -> str:
    """Formats blocks as a single HTML file, without links to files."""

    def inline(text: str) -> str:
        text = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", html.escape(text, quote=False))
        return re.sub(r"`(.*?)`", r"<code>\1</code>", text)

    def element(block: Block) -> str:
        if isinstance(block, Picture):
            if block.svg:
                return block.svg[block.svg.index("<svg") :]
            assert block.file is not None
            data = base64.b64encode(block.file.read_bytes()).decode()
            alt = html.escape(block.title)
            return f'<img alt="{alt}" src="data:image/png;base64,{data}">'
        if isinstance(block, str):
            level = len(block) - len(block.lstrip("#"))
            tag = f"h{level}" if level else "p"
            return f"<{tag}>{inline(block.lstrip('# '))}</{tag}>"
        lines = ["".join(f"<td>{inline(cell)}</td>" for cell in line) for line in block]
        lines[0] = lines[0].replace("td>", "th>")
        return "<table>" + "\n".join(f"<tr>{line}</tr>" for line in lines) + "</table>"

    title = next(block for block in blocks if isinstance(block, str)).lstrip("# ")
    head = (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style>"
    )
    return "\n".join([head, *map(element, blocks), "</html>\n"])
