"""What a reader sees of a comparison: tables, notes, the figure, the page."""

import html
from collections.abc import Callable
from functools import partial
from itertools import cycle
from typing import Any

from fewstep import page
from fewstep.evaluation import MORE_NAMES, NAMES

Table = tuple[str, list[str], list[list[str]]]


def tables(result: dict[str, Any], names: dict[str, str] = NAMES | MORE_NAMES) -> list[Table]:
    """`(title, header, rows)` of each table, as text: a table for each distance in `names`, the posterior, and the terms."""
    series = [line for run in result["runs"] for line in _series(run)]
    columns = sorted({row["budget"] for _, rows in series for row in rows})
    header = ["by NFE", *map(str, columns)]

    def pivot(title: str, text: Callable[[dict[str, Any]], str]) -> Table:
        body = []
        for label, rows in series:
            cells = {r["budget"]: text(r) + (f" [{r['nfe']:g}]" if r["nfe"] != r["budget"] else "") for r in rows}
            body.append([label, *(cells.get(budget, "") for budget in columns)])
        return title, header, body

    against = f"{result['n']} samples against {result['reference']['n']} held-out items"
    found = []
    for key in (key for key in names if key in result["floor"]):
        floor = result["floor"][key]
        low, high = min(floor["values"]), max(floor["values"])
        title = (
            f"{names[key]}, {against}; real vs real ({result['floor_n']}) {floor['mean']:.3g}, {low:.3g} to {high:.3g}"
        )
        found.append(pivot(title, partial(_plus_minus, key)))
    found.append(pivot(f"seconds for {result['n']} samples", lambda row: f"{row['seconds']:.2g}"))
    return [*found, *_posterior_tables(result), _terms(result)]


def _plus_minus(key: str, row: dict[str, Any]) -> str:
    cell = row[key]
    return f"{cell['mean']:.3g} ± {cell['half_width']:.2g}"


def _series(run: dict[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    """The rows of a run by M, each with its label."""
    counts = sorted({row["flow_steps"] for row in run["rows"]})
    return [
        (
            f"{run['name']}, M = {m}" if len(counts) > 1 else run["name"],
            [r for r in run["rows"] if r["flow_steps"] == m],
        )
        for m in counts
    ]


def _posterior_tables(result: dict[str, Any]) -> list[Table]:
    lines = [
        (run, m, {row["tau"]: row for row in rows if row["flow_steps"] == m})
        for run, rows in result["posterior"].items()
        for m in sorted({row["flow_steps"] for row in rows})
    ]
    taus = sorted({tau for _, _, cells in lines for tau in cells})
    found = []
    for key, title in (
        ("spread_skill", "spread/skill of draws from q(x_0 | x_tau) on held-out pairs (1 is calibrated)"),
        ("energy_score", "energy score of these draws (less is better)"),
        ("mean_rmse", "RMSE of the posterior's mean: how good a denoiser the model contains"),
    ):
        body = [
            [run, str(m), *(f"{cells[tau][key]:.3g}" for tau in taus)]
            for run, m, cells in lines
            if key != "mean_rmse" or m == min(other for name, other, _ in lines if name == run)
        ]
        found.append((title, ["by tau", "M", *(f"{tau:g}" for tau in taus)], body))
    return found if lines else []


def _terms(result: dict[str, Any]) -> Table:
    header = ["", "objective", "parameters", "images seen", "training, s", "memory, MiB"]
    body = {}
    for run in result["runs"]:
        cost = run["training"]
        counts = [f"{cost[key]:.0f}" for key in ("parameters", "images", "seconds")]
        body[run["run"]] = [run["run"], run["objective"], *counts, f"{cost['peak_memory'] / 2**20:.0f}"]
    agree = "network, optimiser, steps, batch size and averaging agree"
    return f"on equal terms: {'; '.join(result['terms']) or agree}", header, list(body.values())


def notes(result: dict[str, Any]) -> list[str]:
    """What a reader has to know: where more steps hurt, and what the intervals are."""
    found = [
        f"{run['name']}: N = {row['steps']}, M = {row['flow_steps']} is worse than the fewest steps in energy distance by "
        f"{row['mean']:.2g} ± {row['half_width']:.1g} (joint 95 %)"
        for run in result["runs"]
        for row in run["rises"]
    ] or ["in no run does the energy distance at more steps exceed that at the fewest, beyond joint 95 % intervals"]
    found.append(
        f"± is Student's 95 % interval for the mean over {result['seeds']} seeds of the samples; the held-out items are fixed; "
        "more --seeds see smaller rises"
    )
    if "features" in result:
        f = result["features"]
        found.append(f"Frechet features: {f['extractor']}; accuracy {f['accuracy']:.2%}; sha256 {f['sha256'][:12]}")
    return found


def figure(result: dict[str, Any]) -> bytes:
    """A PNG: for each distance a panel against NFE, a line for each run and M with its intervals, and the floor."""
    from matplotlib.ticker import LogLocator

    keys = [key for key in ("frechet", "energy_distance") if key in result["floor"]]
    drawn, axes = page.figure_of(len(keys), 4.2, wide=True)
    for axis, key in zip(axes, keys, strict=True):
        floor = result["floor"][key]
        low, high = min(floor["values"]), max(floor["values"])
        axis.set_xscale("log")
        if low > 0:
            axis.set_yscale("log")
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter("{x:g}")
        else:  # an unbiased distance may fall below 0
            axis.set_yscale("symlog", linthresh=max(abs(low), abs(high)))
        for colour, run in enumerate(result["runs"]):
            for style, (label, rows) in zip(cycle(("-o", "--s", ":^", "-.v")), _series(run), strict=False):
                x = [row["nfe"] for row in rows]
                y, half = [row[key]["mean"] for row in rows], [row[key]["half_width"] for row in rows]
                axis.errorbar(x, y, yerr=half, fmt=style, color=f"C{colour}", capsize=3, markersize=4, label=label)
        axis.axhspan(low, high, color="0.85", zorder=0)
        axis.axhline(floor["mean"], color="0.4", linestyle="--", linewidth=1, label="floor: real vs real", zorder=1)
        ticks = sorted({row["budget"] for run in result["runs"] for row in run["rows"]})
        axis.set(xlabel="network evaluations per sample (NFE)", ylabel=NAMES[key])
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[-1].legend(fontsize=8, bbox_to_anchor=(1.01, 1), loc="upper left")
    return page.png(drawn)


def document(result: dict[str, Any], image: bytes) -> str:
    """The comparison as one self-contained HTML page."""
    caption = (
        "Distance to held-out data against network evaluations; grey: the same distance between real and real data"
    )
    parts = [
        "<h1>Comparison</h1>",
        page.figure(image, caption),
        *(page.table(*table) for table in tables(result)),
        *(f"<p>{html.escape(note)}</p>" for note in notes(result)),
        f"<h2>Command</h2><pre>{html.escape(result['command'])}</pre>",
    ]
    return page.document("Comparison", parts)
