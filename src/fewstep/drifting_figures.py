"""What a reader sees of a diagnosis of drifting: tables, figures, the page."""

import html
import math
from typing import Any

from fewstep import page
from fewstep.drifting_diagnosis import slopes

Table = tuple[str, list[str], list[list[str]]]
SHOWN = {
    "cosine": "cosine of drift and scores",
    "relative": "relative error (C_alpha)",
    "absolute": "absolute error",
    "alpha_ratio": "alpha_p / alpha_q",
    "gap_energy": "residual gap E||.||^2",
    "c_star_over_c_alpha": "C* / C_alpha",
    "c_star_over_c_rho": "C* / (tau rho)",
}
MATCHED = "relative_to_gaussian"
FALLING = ("relative", "absolute", "gap_energy")  # numbers whose slope in D is told


def tables(result: dict[str, Any]) -> list[Table]:
    """A table for each case: populations, and finite samples beside them."""
    found = []
    for case in result["cases"]:
        rows = []
        for row in case["rows"]:
            for kind in ("population", "finite"):
                cells = [_cell(row[kind].get(key)) for key in (*SHOWN, MATCHED)]
                rows.append([str(row["dim"]) if kind == "population" else "", kind, *cells])
        header = ["D", "", *SHOWN.values(), "off the matched Gaussian"]
        mark = "" if case["holds"] else " (!)"
        found.append((f"{case['name']}{mark}: {case['verdict']}", header, rows))
    fields = [
        [f["kernel"], kind, f"{f[kind]['cosine']['mean']:.6f}", f"{f[kind]['cosine']['least']:.6f}"]
        for f in result["fields"]
        for kind in ("population", "finite")
    ]
    found.append(
        (
            "Fields in the plane: cosine of drift and score difference at points of q",
            ["kernel", "", "mean", "least"],
            fields,
        )
    )
    residuals = [[case["name"], f"{case['across']:.3f}"] for case in result["residuals"]]
    found.append(("Residual across the score, over the shift", ["cloud", "share"], residuals))
    return found


def notes(result: dict[str, Any]) -> list[str]:
    """What was measured at the largest dimension, slopes where there are two from 64 on, and the marks."""
    found = []
    for case in result["cases"]:
        last = max(case["rows"], key=lambda row: row["dim"])
        at = last["population"]
        best = at["c_star_over_c_alpha"]["mean"]
        told = f"at D = {last['dim']} a relative error of {at['relative']['mean']:.2g}, C* / C_alpha {best:.3f}"
        measured = {SHOWN[key]: slopes(case["rows"], key) for key in FALLING}
        if all(math.isfinite(slope) for slope in measured.values()):
            steep = ", ".join(f"{name} {slope:.2f}" for name, slope in measured.items())
            told += f"; log-log slopes in D from 64 on: {steep}"
        found.append(f"{case['name']}, population: {told}")
    return [*found, f"(!) finite samples: {result['shared_noise']}"]


def _cell(number: dict[str, float | None] | None) -> str:
    if number is None:
        return ""
    return f"{number['mean']:.3g}" + (f" ± {number['sd']:.1g}" if number["sd"] else "")


def figures(result: dict[str, Any]) -> dict[str, bytes]:
    """PNG files by name: the fields, the residual's cases, the alignment, the mechanism."""
    return {
        "fields": _fields(result["fields"]),
        "residuals": _residuals(result["residuals"]),
        "alignment": _curves(result, ("absolute", "relative", "cosine")),
        "mechanism": _curves(result, ("alpha_ratio", "gap_energy", "c_star_over_c_alpha")),
    }


def _fields(fields: list[dict[str, Any]]) -> bytes:
    figure, axes = page.figure_of(2 * len(fields), 3.4)
    for k, field in enumerate(fields):
        for axis, name in zip(axes[2 * k : 2 * k + 2], ("drift", "score"), strict=True):
            for cloud, colour in (("p", "C0"), ("q", "C1")):
                axis.scatter(*zip(*field[cloud], strict=True), s=3, color=colour, alpha=0.3)
            arrows = zip(*field["population"][name], strict=True)
            axis.quiver(*zip(*field["points"], strict=True), *arrows, angles="xy", width=0.004)
            axis.set(xticks=[], yticks=[], aspect="equal")
            what = "drift V_p - V_q" if name == "drift" else "score difference"
            axis.set_title(f"{field['kernel']}: {what}", fontsize=9)
    return page.png(figure)


def _residuals(cases: list[dict[str, Any]]) -> bytes:
    figure, axes = page.figure_of(len(cases), 3.2)
    for axis, case in zip(axes, cases, strict=True):
        axis.scatter(*zip(*case["points"], strict=True), s=3, color="0.6")
        for name, colour in (("shift", "C0"), ("score", "C2"), ("delta_across", "C3")):
            axis.quiver(
                0,
                0,
                *case[name],
                angles="xy",
                scale_units="xy",
                scale=1,
                color=colour,
                width=0.012,
                label=name.replace("delta_across", "residual across"),
            )
        axis.set(xlim=(-0.4, 1.3), ylim=(-1.8, 1.8), aspect="equal", xticks=[], yticks=[])
        axis.set_title(f"{case['name']}\nacross / shift = {case['across']:.2f}", fontsize=8)
    axes[0].legend(fontsize=7, loc="lower right")
    return page.png(figure)


def _curves(result: dict[str, Any], keys: tuple[str, ...]) -> bytes:
    figure, axes = page.figure_of(len(keys), 3.2)
    for axis, key in zip(axes, keys, strict=True):
        for k, case in enumerate(result["cases"]):
            dims = [row["dim"] for row in case["rows"]]
            for kind, style in (("population", "o-"), ("finite", "x:")):
                values = [row[kind][key]["mean"] for row in case["rows"]]
                label = case["name"] + ("" if case["holds"] else " (!)") if kind == "population" else None
                axis.plot(dims, values, style, color=f"C{k}", ms=4, label=label)
        axis.set(xscale="log", yscale="log" if key in FALLING else "linear", xlabel="dimension")
        axis.set_title(f"{SHOWN[key]}\nsolid: populations, dotted: finite samples", fontsize=8)
        axis.tick_params(labelsize=7)
    axes[0].legend(fontsize=7)
    return page.png(figure)


CAPTIONS = {
    "fields": "Kernel drift and score difference in the plane, populations: parallel everywhere for a Gaussian kernel "
    "(theorem 1). Blue: data p; orange: model q",
    "residuals": "Three clouds around a point, Laplace kernel: the residual has a part across the score where far mass lies on "
    "one side, none where mass is near and along, none where sides cancel",
    "alignment": "Drift against score difference as the dimension grows. (!): the claim does not hold, or is overstated",
    "mechanism": "Why: preconditioners become equal, the residual's gap vanishes, the best factor becomes the predicted one; "
    "not for laws of one mean or of unequal radii",
}


def document(result: dict[str, Any], images: dict[str, bytes]) -> str:
    """The self-contained page."""
    parts = ["<h1>Drifting and its score view</h1>"]
    parts += [page.figure(image, CAPTIONS[name]) for name, image in images.items()]
    parts += [page.table(*table) for table in tables(result)]
    parts += [f"<p>{html.escape(note)}.</p>" for note in notes(result)]
    parts.append(f"<pre>{html.escape(result['command'])}</pre>")
    return page.document("Drifting and its score view", parts)
