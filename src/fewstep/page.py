"""A self-contained HTML page: figures, tables, one style."""

import base64
import html
import io
from typing import Any

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.2rem; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; margin: 1rem 0; } caption { text-align: left; font-weight: 600; padding: .3rem 0; }
td, th { padding: .2rem .8rem; text-align: right; border-bottom: 1px solid #eee; font-variant-numeric: tabular-nums; }
pre { background: #f5f5f5; padding: .8rem; overflow-x: auto; } figure { margin: 1rem 1.5rem 1rem 0; display: inline-block; }
figcaption { color: #555; max-width: 40rem; } img { max-width: 100%; image-rendering: pixelated; }
"""


def document(title: str, parts: list[str]) -> str:
    """The page of these parts."""
    head = f"<!doctype html><meta charset='utf-8'><title>{html.escape(title)}</title><style>{STYLE}</style>"
    return head + "\n".join(parts) + "\n"


def figure_of(columns: int, size: float, wide: bool = False) -> tuple[Any, Any]:
    """A figure with this many axes side by side, each `size` inches high, and the axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(columns * size * (1.4 if wide else 1), size), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def png(figure: Any) -> bytes:
    """A matplotlib figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def figure(image: bytes, caption: str) -> str:
    """A PNG with a caption."""
    data = base64.b64encode(image).decode()
    text = html.escape(caption)
    return f"<figure><img alt='{text}' src='data:image/png;base64,{data}'><figcaption>{text}</figcaption></figure>"


def table(title: str, header: list[str], rows: list[list[str]]) -> str:
    """A table of texts."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><caption>{html.escape(title)}</caption><tr>{head}</tr>{body}</table>"
