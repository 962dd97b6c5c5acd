"""The HTML of a report: one page, its style inside, nothing fetched. Text from outside is escaped here."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #59636e; --line: #d5dae1; --paper: #ffffff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ee; --soft: #9aa4b2; --line: #343b46; --paper: #14171c; }
}
body { margin: 0 auto; padding: 1rem; max-width: 46rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .4rem; }
.note, figcaption { color: var(--soft); font-size: .9rem; }
figure { margin: 0; } img { width: 100%; height: auto; display: block; margin-top: .5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem .3rem 0; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; vertical-align: top; }
th:first-child, td:first-child, .facts td { text-align: left; }
.facts td { white-space: normal; overflow-wrap: anywhere; }
.facts td:first-child { color: var(--soft); white-space: nowrap; }
"""

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(title: str, parts: Sequence[str]) -> str:
    """The whole page. `parts` are HTML; `title` is text."""
    name = escape(title)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name}</title><style>{_STYLE}</style></head>\n"
        f"<body><h1>{name}</h1>\n" + "\n".join(part for part in parts if part) + "\n</body></html>\n"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "numbers") -> str:
    """A table of texts, which scrolls sideways where the screen is narrow."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head) if any(head) else ""
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
    opening = f"<thead><tr>{top}</tr></thead>\n" if top else ""
    return f'<div class="wide"><table class="{kind}">{opening}<tbody>\n{body}</tbody></table></div>'


def figure_block(title: str, text: str, light: str, dark: str) -> str:
    """A picture for light and dark screens, given as data URIs, under its title."""
    return (
        f"<figure><h2>{escape(title)}</h2><figcaption>{escape(text)}</figcaption>\n"
        f'<picture><source srcset="{dark}" media="(prefers-color-scheme: dark)">\n'
        f'<img src="{light}" alt="{escape(title)}. {escape(text)}"></picture></figure>'
    )
