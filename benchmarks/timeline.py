"""Draw the activity of a device's lanes (CUDA streams) over time as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

Span = tuple[str, str, float, float]
"""Lane, name, begin and end in milliseconds; see `lipstream.backends.tensorrt.trace.Trace.spans`."""

LANES = ("encode", "denoise", "decode")
COLOURS = {"encode": "#dcebf7", "context": "#fbe3d6", "decode": "#dff0dc", "pictures": "#f6e58d"}
WIDTH, LEFT, ROW, TOP = 980, 80, 44, 44


def draw(spans: Sequence[Span], title: str) -> str:
    """One row for each lane; an arrow where a chunk's pictures are on the host."""
    start, end = min(begin for *_, begin, _ in spans), max(end for *_, end in spans)
    scale = (WIDTH - LEFT - 20) / (end - start)
    height = TOP + ROW * len(LANES) + 46

    def x(milliseconds: float) -> float:
        return round(LEFT + (milliseconds - start) * scale, 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"'
        ' font-family="Helvetica, Arial, sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="12" y="24" font-size="14" font-weight="bold" fill="#123">{escape(title)}</text>',
    ]
    bottom = TOP + ROW * len(LANES)
    for row, lane in enumerate(LANES):
        y = TOP + ROW * row
        parts.append(f'<text x="12" y="{y + 24}" font-size="13" fill="#123">{lane}</text>')
        parts.append(f'<path d="M{LEFT} {y + ROW - 4}H{WIDTH - 20}" stroke="#ccd"/>')
        for of, name, begin, until in spans:
            if of != lane:
                continue
            width = max(round((until - begin) * scale, 1), 1)
            fill = COLOURS.get(name, "#f4f1e6")
            parts.append(
                f'<rect x="{x(begin)}" y="{y + 6}" width="{width}" height="28" fill="{fill}" stroke="#345">'
                f"<title>{escape(name)}: {begin:.2f} to {until:.2f} ms</title></rect>"
            )
            if width > 6.5 * len(name):
                middle = round(x(begin) + width / 2, 1)
                parts.append(f'<text x="{middle}" y="{y + 24}" text-anchor="middle" fill="#123">{escape(name)}</text>')
    for _, name, _, until in spans:
        if name == "pictures":
            parts.append(f'<path d="M{x(until)} {bottom - 10}v16" stroke="#a33" stroke-width="1.6"/>')
            parts.append(f'<text x="{x(until)}" y="{bottom + 18}" text-anchor="middle" fill="#a33">frames leave</text>')
    parts.append(f'<text x="{LEFT}" y="{height - 8}" fill="#456">{start:.0f} ms</text>')
    parts.append(f'<text x="{WIDTH - 20}" y="{height - 8}" text-anchor="end" fill="#456">{end:.0f} ms</text>')
    return "\n".join([*parts, "</svg>", ""])
