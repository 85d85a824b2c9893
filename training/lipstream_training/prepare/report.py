"""The report: clips that were kept and dropped, with reasons and pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_PICTURES = 24  # of each reason, so that the page of a large set can be opened
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1300px; padding: 0 1rem; color: #222 }
table { border-collapse: collapse } th, td { padding: .25rem .8rem; text-align: left } td.n { text-align: right }
tr:nth-child(even) td { background: #f4f4f2 } .shown { display: flex; flex-wrap: wrap; gap: 6px }
figure { margin: 0; width: 110px; font-size: 11px; overflow-wrap: anywhere } img { width: 96px; display: block }
"""


def kind(dropped: str) -> str:
    """A reason without its numbers."""
    return dropped.partition(":")[0] or "kept"


def counts(sources: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Clips kept, and stretches dropped by reason, the most frequent first."""
    found = Counter(kind(stretch["dropped"]) for source in sources for stretch in source["stretches"])
    kept = found.pop("kept", 0)
    return {"kept": kept, **dict(found.most_common())}


def page(sources: Sequence[Mapping[str, Any]], unchecked: Sequence[str]) -> str:
    """One HTML file. `unchecked`: sentences on what was not checked."""
    total = counts(sources)
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>lipstream-train prepare</title>",
        f"<style>{_STYLE}</style><h1>{total['kept']} clips from {len(sources)} sources</h1>",
        *(f"<p><b>{escape(text)}</b></p>" for text in unchecked),
        "<table><tr><th>what</th><th>stretches</th></tr>",
        *(f"<tr><td>{escape(name)}</td><td class='n'>{number}</td></tr>" for name, number in total.items()),
        "</table>",
    ]
    for name in total:
        shown = [
            (source["name"], stretch)
            for source in sources
            for stretch in source["stretches"]
            if kind(stretch["dropped"]) == name
        ]
        some = f", the first {_PICTURES}" if len(shown) > _PICTURES else ""
        parts.append(f"<h2>{escape(name)}{some}</h2><div class='shown'>")
        parts += [_figure(source, stretch) for source, stretch in shown[:_PICTURES]]
        parts.append("</div>")
    parts.append("<h2>Sources</h2><table><tr><th>source</th><th>kept</th><th>dropped</th></tr>")
    for source in sources:
        found = counts([source])
        dropped = "; ".join(f"{name} ({number})" for name, number in found.items() if name != "kept")
        note = f" {source['note']}" if source["note"] else ""
        parts.append(
            f"<tr><td>{escape(source['name'])}</td><td class='n'>{found['kept']}</td>"
            f"<td>{escape(dropped + note)}</td></tr>"
        )
    return "".join([*parts, "</table></html>\n"])


def reasons(found: Mapping[str, int]) -> str:
    """What `counts` found to be dropped, on one line."""
    return ", ".join(f"{name} ({number})" for name, number in found.items() if name != "kept") or "nothing"


def describe(found: Mapping[str, Any]) -> str:
    """What `prepare` returned, as text for a terminal."""
    lines = [f"{found['clips']} clips in {len(found['shards'])} shards; {found['report']}: pictures, and reasons"]
    lines += [f"  dropped: {name} ({number})" for name, number in found["counts"].items() if name != "kept"]
    return "\n".join([*lines, *found["unchecked"]])


def _figure(source: str, stretch: Mapping[str, Any]) -> str:
    image = f"<img alt='' src='data:image/jpeg;base64,{stretch['thumbnail']}'>" if stretch["thumbnail"] else ""
    numbers = ", ".join(f"{name} {value:g}" for name, value in stretch["measured"].items())
    text = f"{source} at {stretch['start'] / 25:.1f} s {stretch['dropped']}"
    return f"<figure title='{escape(numbers, quote=True)}'>{image}{escape(text)}</figure>"
