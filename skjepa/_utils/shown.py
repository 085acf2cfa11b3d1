"""How results look in a terminal and in a notebook: plain tables, HTML tables, pictures inside HTML."""

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape

from PIL import Image

Row = Sequence[str]
SHOWN = 10
"""Rows of a table, and pictures, that are shown of many."""


def text_table(head: Row, rows: Iterable[Row]) -> str:
    """Return a table in plain text: columns aligned to the left, two spaces between them."""
    lines = [list(head), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def html_table(head: Row, rows: Iterable[Row], *, title: str = "") -> str:
    """Return a table in HTML, as notebooks show it; every cell is escaped."""
    caption = f"<p>{escape(title)}</p>" if title else ""
    top = "".join(f'<th style="text-align:left">{escape(cell)}</th>' for cell in head)
    body = "".join(
        "<tr>" + "".join(f'<td style="text-align:left">{escape(cell)}</td>' for cell in row) + "</tr>" for row in rows
    )
    return f"{caption}<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def html_pictures(pictures: Iterable[tuple[Image.Image, str]], *, title: str = "") -> str:
    """Return pictures in a row that wraps, each with a caption, inside the HTML itself."""
    caption = f"<p>{escape(title)}</p>" if title else ""
    figures = "".join(
        '<figure style="margin:0 8px 8px 0">'
        f'<img src="data:image/png;base64,{base64.b64encode(png(picture)).decode()}" alt="{escape(text)}"/>'
        f'<figcaption style="font-size:smaller">{escape(text)}</figcaption></figure>'
        for picture, text in pictures
    )
    return f'{caption}<div style="display:flex;flex-wrap:wrap">{figures}</div>'


def png(picture: Image.Image) -> bytes:
    """Return a picture as the content of a PNG file."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def three_digits(value: float | None) -> str:
    """Return a number in three significant digits, "" for None and NaN."""
    return "" if value is None or value != value else f"{value:.3g}"
