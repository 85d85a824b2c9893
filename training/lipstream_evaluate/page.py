"""The page: the table, and for each clip pictures of all systems and the mouths' opening over time."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import matplotlib.figure
import numpy as np
from lipstream.media import FPS

from .judge import Verdict
from .report import METRICS, published, rows

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1500px; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; display: block; overflow-x: auto } th, td { padding: .3rem .7rem; text-align: right }
th:first-child, td:first-child { text-align: left } tr:nth-child(even) td { background: #f4f4f2 }
thead th { border-bottom: 2px solid #888; vertical-align: bottom } caption { text-align: left; padding: .4rem 0 }
.sheet { display: grid; grid-template-columns: max-content repeat(8, minmax(60px, 160px)); gap: 3px }
.sheet span { align-self: center }
.sheet img { width: 100%; display: block } .sheet span { padding-right: .8rem } .plot svg { width: 100%; height: auto }
.note { color: #8a4b00 } details { margin: .5rem 0 } code { background: #f4f4f2 }
"""


def page(found: Mapping[str, Any], verdicts: Sequence[Verdict], *, paper: bool = False) -> str:
    """One HTML file with everything in it."""
    heading, body = rows(found, paper=paper)
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width'><title>lipstream evaluate</title>",
        f"<style>{_STYLE}</style><h1>Lip-sync, compared</h1>",
        _table(heading, body),
        "<p>Means over clips, with 95 % intervals (bootstrap over clips).",
        f" Published rows: {escape(published()['source'])}." if paper else "",
        "</p>",
    ]
    parts += [
        f"<p class='note'>Left out: {METRICS[name].label}: {escape(why)}</p>" for name, why in found["left_out"].items()
    ]
    parts += [f"<p class='note'>Missing: {escape(text)}</p>" for text in found["missing"]]
    what = "".join(f"<li><b>{escape(m.label)}</b>: {escape(m.what)}</li>" for m in METRICS.values())
    parts.append(f"<details><summary>What the columns are</summary><ul>{what}</ul></details>")
    for name in dict.fromkeys(verdict.case.name for verdict in verdicts):
        parts.append(_clip(name, [verdict for verdict in verdicts if verdict.case.name == name]))
    return "".join(parts) + "</html>\n"


def _table(heading: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th scope='col'>{escape(cell)}</th>" for cell in heading)
    lines = [
        f"<tr><th scope='row'>{escape(row[0])}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in row[1:])}</tr>"
        for row in body
    ]
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _clip(name: str, verdicts: Sequence[Verdict]) -> str:
    notes = [f"<p class='note'>{escape(v.case.system)}: {escape(note)}</p>" for v in verdicts for note in v.notes]
    values = [
        [
            v.case.system,
            *("-" if (x := v.values.get(m, np.nan)) != x else f"{x:.{METRICS[m].digits}f}" for m in METRICS),
        ]
        for v in verdicts
    ]
    known = [i for i in range(1, len(METRICS) + 1) if any(row[i] != "-" for row in values)]
    heading = ["system", *(list(METRICS.values())[i - 1].label for i in known)]
    body = [[row[0], *(row[i] for i in known)] for row in values]
    first = verdicts[0]
    sheet = _strip("reference", first.reference_pictures, first.moments)
    sheet += "".join(_strip(v.case.system, v.pictures, v.moments) for v in verdicts)
    return (
        f"<h2>{escape(name)}</h2>{''.join(notes)}<div class='sheet'>{sheet}</div>"
        f"<div class='plot'>{_plot(verdicts)}</div>{_table(heading, body)}"
    )


def _strip(name: str, pictures: Sequence[bytes], moments: Sequence[int]) -> str:
    images = [
        f"<img alt='{escape(name, quote=True)} at {moment / FPS:.2f} s' title='{moment / FPS:.2f} s' "
        f"src='data:image/jpeg;base64,{base64.b64encode(data).decode()}'>"
        for data, moment in zip(pictures, moments, strict=True)
    ]
    return f"<span>{escape(name)}</span>" + "".join(images) + "<i></i>" * (8 - len(images))


def _plot(verdicts: Sequence[Verdict]) -> str:
    """SVG: the lip gap of the reference and of each system over time, the loudness behind them."""
    figure = matplotlib.figure.Figure(figsize=(13, 2.8), layout="constrained")
    axes = figure.add_subplot()
    first = verdicts[0]
    seconds = np.arange(len(first.sound)) / FPS
    top = max([0.1, *(float(np.nanmax(v.gap)) for v in verdicts if not np.isnan(v.gap).all())])
    peak = float(first.sound.max(initial=0)) or 1.0
    axes.fill_between(seconds, first.sound / peak * top, color="#dddddd", label="loudness of the sound")
    axes.plot(np.arange(len(first.reference_gap)) / FPS, first.reference_gap, color="#555555", lw=1, label="reference")
    for verdict in verdicts:
        axes.plot(np.arange(len(verdict.gap)) / FPS, verdict.gap, lw=1.4, label=verdict.case.system)
    for moment in first.moments:
        axes.axvline(moment / FPS, color="#bbbbbb", lw=0.6, ls=":")
    axes.set(xlabel="seconds", ylabel="lip gap / eye distance", xlim=(0, max(0.1, len(first.sound) / FPS)))
    axes.set_ylim(0, None)
    axes.legend(loc="upper right", fontsize=8, ncols=4, frameon=False)
    target = io.StringIO()
    figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None})
    text = target.getvalue()
    return text[text.index("<svg") :]
