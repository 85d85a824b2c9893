"""Generate the blocks between `<!-- results NAME -->` and `<!-- end -->` in README.md and the pages of docs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lipstream.media import FPS

from . import roofline

PAGES = ("performance.md", "quality.md", "scaling.md", "../README.md")
"""Relative to docs."""
Results = dict[str, Any]


def fill(results: Path, docs: Path) -> None:
    """Write the pages' blocks and the pictures from the result files."""
    for name in PAGES:
        (docs / name).write_text(filled((docs / name).read_text(), results))
    draw(results, docs)


def filled(text: str, results: Path) -> str:
    """Return the page with its blocks generated from the results."""

    def block(found: re.Match[str]) -> str:
        name = found.group(1)
        return f"<!-- results {name} -->\n{BLOCKS[name](results)}\n<!-- end -->"

    return re.sub(r"<!-- results (\w+) -->\n.*?<!-- end -->", block, text, flags=re.DOTALL)


def load(results: Path, name: str) -> Results:
    found: Results = json.loads((results / f"{name}.json").read_text())
    return found


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in lines)


def median(x: dict[str, float], digits: int = 1) -> str:
    return f"{x['median']:.{digits}f} ({x['min']:.{digits}f} to {x['max']:.{digits}f})"


def origin(found: Results) -> str:
    m = found["machine"]
    return f"{m['cpu']}, {m['cores']} cores, onnxruntime {m['versions']['onnxruntime']}, commit {found['commit']}"


def share(x: dict[str, float]) -> str:
    return f"{x['median']:.0%} ({x['min']:.0%} to {x['max']:.0%})"


def jobs(found: Results) -> Iterator[tuple[str, int, Results]]:
    """(size as text, cores, numbers) of each case of the whole job, in the order of the file."""
    for size, by_cores in found["results"]["whole_job"].items():
        for count, row in by_cores.items():
            yield size.replace("x", " x "), int(count), row


def headline(results: Path) -> str:
    """README's numbers of the whole job; the first is that of the largest video on the most cores."""
    found = load(results, "throughput")
    *_, (size, count, largest) = jobs(found)
    fps, passes = largest["fps"]["median"], found["results"]["passes"]
    rows = [
        (
            name,
            cores,
            median(row["fps"]),
            f"{row['share_of_transcode']['median']:.0%}",
            median(row["first_frame_seconds"], 2),
            f"{row['peak_memory_mib']['median']:.0f}",
            f"{row['times_faster_than_eager']['median']:.2f}" if "eager" in row else "",
        )
        for name, cores, row in jobs(found)
    ]
    head = ["video", "cores", "fps", "share of a transcode", "first frame, s", "peak MiB", "times eager PyTorch"]
    return "\n".join(
        [
            f"{size} on {plural(count)}: **{fps:.0f} fps**, real-time factor {FPS / fps:.2f}, "
            f"{largest['share_of_transcode']['median']:.0%} of the speed of a plain transcode.",
            "",
            table(head, rows),
            "",
            f"The passes alone are {median(passes['ours_times_faster'], 2)} times as fast as in eager PyTorch, their "
            f"velocities agree within {passes['relative_difference']:.1e}. {origin(found)}.",
        ]
    )


def plural(count: int) -> str:
    return f"{count} core" if count == 1 else f"{count} cores"


def throughput(results: Path) -> str:
    found = load(results, "throughput")
    r = found["results"]
    rows, stages = [], []
    for size, cores, row in jobs(found):
        other = row["transcode"]
        eager = (median(row["eager"]["fps"]), median(row["times_faster_than_eager"], 2)) if "eager" in row else ("", "")
        rows.append(
            (
                size,
                cores,
                median(row["fps"]),
                median(other["fps"]),
                share(row["share_of_transcode"]),
                *eager,
                median(row["first_frame_seconds"], 2),
                f"{row['peak_memory_mib']['median']:.0f}",
                f"{other['peak_memory_mib']['median']:.0f}",
            )
        )
        spent = ", ".join(f"{stage} {s['median']:.2f}" for stage, s in row["stages_seconds"].items())
        stages.append((size, cores, row["frames"], f"{row['seconds']['median']:.2f}", spent))
    head = ["video", "cores", "fps", "transcode", "share of it", "eager PyTorch", "times as fast"]
    head += ["first frame, s", "peak MiB", "transcode's"]
    passes = r["passes"]
    kinds = [*passes["onnxruntime_ms"]]
    released = median(passes["ours_times_faster_than_upstream"], 2)
    second = [
        (label, *(median(passes[f"{name}_ms"][kind]) for kind in kinds))
        for name, label in (
            ("onnxruntime", "ONNX Runtime"),
            ("torch", "PyTorch, eager, with the ring"),
            ("upstream", "PyTorch, in the upstream structure"),
        )
    ]
    allowed = ["of what the machine allows", *(f"{passes['of_bound'][kind]:.0%}" for kind in kinds[:-1]), ""]
    encoder = r["encoder"]
    return "\n".join(
        [
            f"{origin(found)}. {encoder['codec']}, preset `{encoder['preset']}`, crf {encoder['crf']}.",
            "",
            table(head, rows),
            "",
            table(["video", "cores", "frames", "seconds", "seconds by stage"], stages),
            "",
            f"The passes are {median(passes['ours_times_faster'], 2)} times as fast as in eager PyTorch, and "
            f"{released} times as fast as in the released structure.",
            "",
            table(["milliseconds of", *kinds], [*second, allowed]),
        ]
    )


def stream(results: Path) -> str:
    found = load(results, "stream")
    rows = []
    for name, label in (("stream", "live"), ("stream_prepared", "prepared")):
        for row in load(results, name)["results"]["rows"]:
            ms = row["chunk_ms"]
            fits = "yes" if row["keeps_up"] else "no"
            rows.append(
                (
                    label,
                    row["streams"],
                    *(f"{ms[p]:.0f}" for p in ("p50", "p95", "p99")),
                    f"{row['fps_of_all']:.0f}",
                    fits,
                )
            )
    head = ["reference", "streams", "p50, ms", "p95", "p99", "fps of all", "keeps up"]
    return f"{origin(found)}.\n\n{table(head, rows)}"


def ring(results: Path) -> str:
    found = load(results, "ring")
    rows = [
        (
            name,
            kind,
            m["latent_frames"],
            median(m["ring_chunk_ms"]),
            median(m["recompute_chunk_ms"]),
            median(m["chunk_ratio"], 2),
        )
        for name, kinds in found["results"].items()
        for kind, m in kinds.items()
    ]
    head = ["student", "where", "latent frames", "ring, ms a chunk", "recomputing", "times as long"]
    return f"{origin(found)}.\n\n{table(head, rows)}"


def flat(results: Path) -> str:
    found, day = load(results, "flatness"), load(results, "drift")["results"]
    rows = [(f"{r['seconds']:g} s", f"{r['chunk_ms']:.1f}", f"{r['rss_mib']:.1f}") for r in found["results"]["table"]]
    hours = [day["hours"][i] for i in sorted({0, len(day["hours"]) // 2, len(day["hours"]) - 1})]
    simulated = [
        (f"{r['hours']:.0f} h", r["drift_samples"], f"{r['chunk_ms']:.2f}", f"{r['rss_mib']:.1f}") for r in hours
    ]
    extra = day["samples_given"] - day["samples_pushed"]
    return "\n".join(
        [
            f"{origin(found)}. The whole engine, on a prepared reference:",
            "",
            table(["after", "ms a chunk", "resident MiB"], rows),
            "",
            f"A day by simulated clock, the networks replaced by copies: {day['frames']} frames of "
            f"{day['frames_wanted']}, {day['out_of_order']} out of order, {extra} samples of silence in the last:",
            "",
            table(["after", "drift, samples", "ms a chunk", "resident MiB"], simulated),
        ]
    )


def kernels(results: Path) -> str:
    found = load(results, "kernels")
    rows = []
    for name, graph in found["results"]["graphs"].items():
        operators = [*graph["operators"].items()]
        most = ", ".join(f"{kind} {x['ms']:.1f}" for kind, x in operators[:6])
        rows.append((name, f"{graph['ms']:.1f}", most))
    own = [
        (name, f"{k['microseconds']['median']:.0f}", f"{k['gb_s']:.2f}", f"{k['of_copy']:.0%}")
        for name, k in found["results"]["kernels"].items()
    ]
    return "\n".join(
        [
            f"{origin(found)}. One thread; milliseconds by operator as ONNX Runtime's profiler has them:",
            "",
            table(["graph", "ms", "most of it"], rows),
            "",
            table(["kernel of csrc", "us", "GB/s", "of a copy"], own),
        ]
    )


def bounds(results: Path) -> str:
    found = load(results, "roofline")
    return f"Counted at commit {found['commit']}.\n\n{roofline.table(found['results'])}"


def thousand(results: Path) -> str:
    found = load(results, "roofline")["results"]["rows"]
    rows = [
        (r["student"], r["precision"], r["scenario"], r["device"], r["streams"], -(-1000 // r["streams"]))
        for r in found
        if r["student"] != "tiny" and r["device"] in ("H100", "B200") and r["streams"]
    ]
    return table(["student", "precision", "scenario", "device", "streams on one", "devices for a thousand"], rows)


def check(results: Path) -> str:
    found = load(results, "roofline")
    figures = ", ".join(
        f"{name.replace('_', ' ')} {x:.3g}" for name, x in found["results"]["check"]["ceilings"].items()
    )
    return f"{origin(found)}. Ceilings measured: {figures}.\n\n{roofline.check_table(found['results']['check'])}"


LIPS = {
    "gap": "lip gap ~ new speech",
    "gap_best": "at the best lag within a frame",
    "gap_other": "lip gap ~ other speech",
    "gap_source": "lip gap ~ the source's speech",
    "gap_phonemes": "lip gap ~ phonemes",
    "gap_phonemes_other": "lip gap ~ phonemes of others",
    "width": "width ~ new speech",
    "width_other": "width ~ other speech",
    "rounding": "rounding ~ new speech",
    "closures": "closures met",
    "closures_other": "closures of other speech met, by chance",
    "false_closures": "false closures",
    "amplitude_gap": "amplitude of the gap",
    "amplitude_width": "amplitude of the width",
    "sharpness": "sharpness",
    "grid": "grid",
    "flicker": "flicker",
    "colour_step": "colour step at the mask's edge, of 255",
    "identity": "identity of the closed mouth",
    "paste": "paste",
    "paste_psnr": "paste, PSNR in dB",
    "faces_lost": "faces lost",
}


def lips(results: Path) -> str:
    found = load(results, "lip_accuracy")
    kinds = found["results"]["kinds"]
    limits = {name: both for kind in kinds.values() for name, both in kind["limits"].items()}
    rows = [
        (label, *(cell for kind in kinds.values() for cell in _lip_cells(kind["means"], name)), wanted(limits, name))
        for name, label in LIPS.items()
        if any(name in kind["means"] for kind in kinds.values())
    ]
    head = ["", *(cell for kind in kinds for cell in (f"{kind.replace('3d', '3D')} people", "ceiling")), "wanted"]
    count, seconds = found["options"]["people"], found["options"]["seconds"]
    return f"{origin(found)}. {count} people of each kind, {seconds:g} s each.\n\n{table(head, rows)}"


def _lip_cells(means: Results, name: str) -> tuple[str, str]:
    """The mean with its interval and range, and the mean of the ceiling."""
    ceiling = means.get(f"{name}_ceiling", {}).get("mean")
    return interval(means.get(name)), "" if ceiling is None else f"{ceiling:.2f}"


def interval(x: Results | None) -> str:
    """Mean, 95 % interval, least and greatest."""
    if x is None or x["mean"] is None:
        return ""
    low, high = x["ci95"] or (x["min"], x["max"])
    return f"{x['mean']:.2f} ({low:.2f} to {high:.2f}); {x['min']:.2f} .. {x['max']:.2f}"


def wanted(limits: Results, name: str) -> str:
    least, most = limits.get(name, (None, None))
    parts = ["" if least is None else f"at least {least:g}", "" if most is None else f"at most {most:g}"]
    return ", ".join(part for part in parts if part)


def real_lips(results: Path) -> str:
    found = load(results, "lip_accuracy_real")
    real = found["results"]["kinds"]["real"]
    means = [
        (label, interval(real["means"][name]), wanted(real["limits"], name))
        for name, label in {**LIPS, "gap": "lip gap ~ loudness", "gap_other": "lip gap ~ loudness of others"}.items()
        if name in real["means"]
    ]
    columns = [
        "gap_phonemes",
        "gap",
        "gap_other",
        "amplitude_gap",
        "sharpness",
        "grid",
        "colour_step",
        "identity",
        "paste",
    ]
    columns.append("faces_lost")
    each = [
        (clip, voice, *("" if numbers[name] is None else f"{numbers[name]:.2f}" for name in columns))
        for clip, by_voice in real["clips"].items()
        for voice, numbers in by_voice.items()
    ]
    head = ["clip", "voice", *(name.replace("_", " ") for name in columns)]
    return "\n".join([f"{origin(found)}.", "", table(["", "mean", "wanted"], means), "", table(head, each)])


BLOCKS: dict[str, Callable[[Path], str]] = {
    "headline": headline,
    "throughput": throughput,
    "stream": stream,
    "ring": ring,
    "flat": flat,
    "kernels": kernels,
    "bounds": bounds,
    "check": check,
    "thousand": thousand,
    "lips": lips,
    "real_lips": real_lips,
}


def draw_whole_job(axes: Any, found: Results) -> None:
    """Bars of the frames per second at each size, on the most cores: the only case with eager PyTorch."""
    most = {size: (count, row) for size, count, row in jobs(found)}
    for i, (label, job, colour) in enumerate(
        (
            ("LipStream", "", "#f58518"),
            ("plain transcode", "transcode", "#4c78a8"),
            ("PyTorch, eager", "eager", "#bab0ac"),
        )
    ):
        for place, (_, row) in enumerate(most.values()):
            if job and job not in row:
                continue
            fps = (row[job] if job else row)["fps"]
            error = [[fps["median"] - fps["min"]], [fps["max"] - fps["median"]]]
            axes.bar(place + 0.27 * (i - 1), fps["median"], 0.27, yerr=error, capsize=3, color=colour)
        axes.bar(0, 0, color=colour, label=label)
    ticks = [f"{size}\n{plural(count)}" for size, (count, _) in most.items()]
    axes.set(xticks=range(len(most)), xticklabels=ticks, ylabel="fps, whole job", yscale="log")
    axes.legend(fontsize=8)


def draw(results: Path, docs: Path) -> None:
    """docs/performance.svg: this machine. docs/roofline.svg: bounds of GPUs."""
    import matplotlib.figure

    roofline.plot(load(results, "roofline")["results"], docs / "roofline.svg")
    figure = matplotlib.figure.Figure(figsize=(12, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    draw_whole_job(left, load(results, "throughput"))
    for name, label in (("stream", "live"), ("stream_prepared", "prepared")):
        rows = load(results, name)["results"]["rows"]
        middle.plot([r["streams"] for r in rows], [r["chunk_ms"]["p99"] for r in rows], "o-", label=f"{label}, p99")
    middle.axhline(480, color="#888888", ls=":", label="12 frames last 480 ms")
    middle.set(xlabel="streams at once", ylabel="ms from start to pictures")
    middle.legend(fontsize=8)
    rows = [r for r in load(results, "roofline")["results"]["check"]["graphs"] if r["attended"] in (0, 7)]
    places = range(len(rows))
    right.bar([i - 0.2 for i in places], [r["bound_ms"] for r in rows], 0.4, label="bound", color="#bab0ac")
    right.bar(
        [i + 0.2 for i in places], [r["measured_ms"]["median"] for r in rows], 0.4, label="measured", color="#f58518"
    )
    right.set(ylabel="ms a call", xticks=places, xticklabels=[r["graph"].replace("_", "\n") for r in rows])
    right.tick_params(axis="x", labelsize=7)
    right.legend(fontsize=8)
    figure.savefig(docs / "performance.svg", format="svg", metadata={"Date": None})
