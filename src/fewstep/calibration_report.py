"""What a reader sees of a calibration: verdicts in plain words, tables, figures, the page."""

import html
import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any

from fewstep import page
from fewstep.verdict import BIASED, CALIBRATED, IGNORING, NARROW, SHAPE, WIDE

Table = tuple[str, list[str], list[list[str]]]


def verdicts(result: dict[str, Any]) -> list[str]:
    """What the tests found, a sentence for everything that was rejected; then what became of the controls."""
    models = [family for family in result["families"] if not family["control"]]
    found = []
    for family in models:
        name, rows = family["name"], family["rows"]
        if family["calibrated"]:
            found.append(
                f"{name}: calibrated as far as {result['reference']['n']} pairs can tell: no test rejects, at level "
                f"{result['level']:.3g} over all times and components together"
            )
        rejected = [row for row in rows if row["words"] != [CALIBRATED]]
        found += [f"tau = {r['tau']:g}, {name}: {' and '.join(_phrases(r))}{_advice(r, models)}" for r in rejected]
        apart = [row for row in rows if not row["composition"]["agrees"]]
        if apart:
            found.append(
                f"{name}: two steps, by way of x_s at s = tau / 2, do not agree with one: energy distance of their draws "
                + _distances(apart, "composition", "energy_distance")
            )
        critical = NormalDist().inv_cdf(1 - result["level"] / len(rows))
        law = "conditional_energy_distance"
        wrong = [r for r in rows if "exact" in r and r["exact"][law] > critical * r["exact"][f"{law}_se"]]
        if wrong:
            found.append(
                f"{name}: draws are not those of the exact posterior, be they calibrated or not: conditional energy distance "
                + _distances(wrong, "exact", law)
            )
    return found + [_of_control(family, result["level"]) for family in result["families"] if family["control"]]


def _distances(rows: list[dict[str, Any]], part: str, name: str) -> str:
    return ", ".join(f"{_plus_minus(row[part], name)} at tau = {row['tau']:g}" for row in rows)


def _phrases(row: dict[str, Any]) -> list[str]:
    """What the words of a row mean, with the numbers behind them."""
    many = f"{row['components_rejected']} of {len(row['rank_p_components'])} components rejected"
    holds = f"the 90 % interval holds {_percent(row['coverage_90'])} of the truths"
    spread = f"spread/skill {_interval(row, 'spread_skill')}; {holds}"
    little = "draws vary too little" if row["spread"] > 0 else "draws do not vary at all"
    farthest = max(row["rank_means"], key=lambda mean: abs(mean - 0.5))
    phrases = {
        NARROW: f"{little} ({spread}; {many})",
        WIDE: f"draws vary too much ({spread}; {many})",
        BIASED: f"draws are biased (rank histogram sloped: of all components' mean ranks, 0.5 in the middle, {farthest:.2f} is "
        "the farthest off)",
        SHAPE: f"draws have the wrong shape ({many}; TARP p = {row['tarp_p']:.2g}; {spread})",
        IGNORING: f"calibrated component by component, but ignoring x_tau (TARP p = {row['tarp_p']:.2g}; x_tau explains "
        f"{_percent(row['explained'])} of the draws' variance, of the data's {_percent(row['explained_linearly'])} or more)",
    }
    return [phrases[word] for word in row["words"]]


def _advice(row: dict[str, Any], models: list[dict[str, Any]]) -> str:
    """Another M whose spread/skill at this tau is at most half as far from 1."""
    others = [other for family in models for other in family["rows"] if other["tau"] == row["tau"] and other is not row]
    best = min(others, key=lambda other: abs(other["spread_skill"] - 1), default=row)
    if abs(best["spread_skill"] - 1) > 0.5 * abs(row["spread_skill"] - 1) or not {NARROW, WIDE} & set(row["words"]):
        return ""
    more = "more" if best["flow_steps"] > row["flow_steps"] else "fewer"
    return f"; use {more} flow steps (M = {best['flow_steps']}: {best['spread_skill']:.3f})"


def _of_control(family: dict[str, Any], level: float) -> str:
    """Whether a control went as it has to: the exact posterior is accepted, the others are rejected."""
    by_word: dict[str, list[str]] = {}
    for row in family["rows"]:
        by_word.setdefault(" and ".join(row["words"]), []).append(f"{row['tau']:g}")
    passed = ", ".join(by_word.pop(CALIBRATED, []))
    failed = "; ".join(f"{word} at tau = {', '.join(taus)}" for word, taus in by_word.items())
    name = f"control, {family['name']}"
    if family["positive"]:
        by_chance = f"{failed}, which has probability {level:.3g}: try another seed"
        return f"{name}: calibrated, as it has to be" if family["calibrated"] else f"{name}: {by_chance}"
    unseen = f"not rejected at tau = {passed}, where these pairs do not tell it from the truth"
    return f"{name}: " + "; ".join(
        [*([f"rejected, as it has to be: {failed}"] if failed else []), *([unseen] if passed else [])]
    )


Columns = dict[str, Callable[[dict[str, Any]], str]]
_TRUST: Columns = {
    "tau": lambda row: f"{row['tau']:g}",
    "verdict": lambda row: ", ".join(row["words"]),
    "p, ranks": lambda row: f"{row['rank_p']:.2g}",
    "p, TARP": lambda row: f"{row['tarp_p']:.2g}",
    "spread/skill": lambda row: _interval(row, "spread_skill"),
    "50 % holds": lambda row: _percent(row["coverage_50"]),
    "90 % holds, %": lambda row: _interval(row, "coverage_90", percent=True),
}
_SCORES: Columns = {
    "tau": lambda row: f"{row['tau']:g}",
    "energy score": lambda row: _interval(row, "energy_score"),
    "CRPS": lambda row: f"{row['crps']:.4g}",
    "variogram score": lambda row: f"{row['variogram_score']:.4g}" if "variogram_score" in row else "",
    "RMSE of the mean": lambda row: f"{row['mean_rmse']:.4g}",
    "variance explained by x_tau": lambda row: _percent(row["explained"]),
}
_COMPOSITION: Columns = {
    "tau": lambda row: f"{row['tau']:g}",
    "s": lambda row: f"{row['s']:g}",
    "spread/skill": lambda row: f"{row['spread_skill']:.3f}",
    "by way of x_s": lambda row: _interval(row["composition"], "spread_skill"),
    "energy score": lambda row: f"{row['energy_score']:.4g}",
    "energy score by way of x_s": lambda row: f"{row['composition']['energy_score']:.4g}",
    "p, TARP by way of x_s": lambda row: f"{row['composition']['tarp_p']:.2g}",
    "energy distance": lambda row: _plus_minus(row["composition"], "energy_distance"),
    "agree": lambda row: "yes" if row["composition"]["agrees"] else "no",
}
_EXACT: Columns = {
    "tau": lambda row: f"{row['tau']:g}",
    "variance ratio": lambda row: f"{row['exact']['variance_ratio']:.4f}",
    "along the largest": lambda row: f"{row['exact']['variance_ratio_largest']:.4f}",
    "along the smallest": lambda row: f"{row['exact']['variance_ratio_smallest']:.4f}",
    "energy distance": lambda row: _plus_minus(row["exact"], "conditional_energy_distance"),
}


def tables(result: dict[str, Any]) -> list[Table]:
    """`(title, header, rows)` of each table, as text."""

    def table(title: str, columns: Columns, only: str = "tau") -> Table:
        rows = [
            [family["name"], *(text(row) for text in columns.values())]
            for family in result["families"]
            for row in family["rows"]
            if only in row
        ]
        return title, ["", *columns], rows

    about = f"draws from q(x_0 | x_tau): {result['reference']['n']} held-out pairs, {result['draws']} draws each"
    found = [
        table(f"{about}; [95 % interval]", _TRUST),
        table("scores of the same draws (less is better)", _SCORES),
        table("x_tau -> x_s -> x_0 beside x_tau -> x_0 (± standard error)", _COMPOSITION, "composition"),
        table("beside the exact posterior: 1 and 0 for equal laws (± standard error)", _EXACT, "exact"),
    ]
    return [one for one in found if one[2]]


def _interval(row: dict[str, Any], name: str, percent: bool = False) -> str:
    digits, scale = (1, 100) if percent else (3, 1)
    value, low, high = (f"{scale * x:.{digits}f}" for x in (row[name], *row[f"{name}_interval"]))
    return f"{value} [{low}, {high}]"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _plus_minus(row: dict[str, Any], name: str) -> str:
    return f"{row[name]:.2g} ± {row[f'{name}_se']:.1g}"


def figures(result: dict[str, Any]) -> list[tuple[bytes, str]]:
    """PNGs with captions: rank histograms of each family; coverage of intervals; TARP."""
    found = [(_histograms(result, family), _caption(result, family)) for family in result["families"]]
    bands = "grey: 99 % of calibrated curves stay inside"
    captions = {
        "coverage": f"Central intervals: share of the truths inside, less the level; {bands} (at one level)",
        "tarp": "TARP: share of the truths that have less than this share of the draws nearer to the reference, less the level; "
        f"{bands} (at all levels)",
    }
    return found + [(_departures(result, name), caption) for name, caption in captions.items()]


def _caption(result: dict[str, Any], family: dict[str, Any]) -> str:
    what = "control, " + family["name"] if family["control"] else family["name"]
    return (
        f"Rank histograms, {what}: where the truth lies among the draws, all components together, 1 where calibrated; "
        f"grey: 99 % of calibrated histograms stay inside ({result['reference']['n']} pairs)"
    )


def _histograms(result: dict[str, Any], family: dict[str, Any]) -> bytes:
    bins = result["bins"]
    critical = NormalDist().inv_cdf(1 - 0.01 / (2 * bins))
    drawn, axes = page.figure_of(len(family["rows"]), 2.4)
    top = max(2.0, 1.1 * min(4.0, max(bar for row in family["rows"] for bar in row["rank_histogram"])))
    for axis, row in zip(axes, family["rows"], strict=True):
        error = critical * sum(row["rank_histogram_se"]) / bins
        colour = "C0" if row["words"] == [CALIBRATED] else "C3"
        axis.bar([(i + 0.5) / bins for i in range(bins)], row["rank_histogram"], 0.9 / bins, color=colour)
        axis.axhspan(1 - error, 1 + error, color="0.3", alpha=0.35, zorder=3)
        axis.set(title=f"tau = {row['tau']:g}", xlim=(0, 1), ylim=(0, top), xlabel=", ".join(row["words"]))
        axis.set_xticks([0, 0.5, 1], ["lowest", "middle", "highest"], fontsize=7)
    axes[0].set_ylabel("share, 1 is uniform")
    return page.png(drawn)


def _departures(result: dict[str, Any], name: str) -> bytes:
    """The curve less its diagonal, a panel for each tau, a line for each family."""
    n, levels = result["reference"]["n"], result["levels"]
    first = result["families"][0]["rows"]
    drawn, axes = page.figure_of(len(first), 2.6)
    for i, axis in enumerate(axes):
        if name == "tarp":  # Kolmogorov and Smirnov's band, all levels together
            half = [math.sqrt(-0.5 * math.log(0.01 / 2) / n)] * len(levels)
        else:
            half = [NormalDist().inv_cdf(0.995) * error for error in first[i]["coverage_se"]]
        axis.fill_between(levels, [-h for h in half], half, color="0.85")
        for colour, family in enumerate(result["families"]):
            apart = [value - level for value, level in zip(family["rows"][i][name], levels, strict=True)]
            axis.plot(levels, apart, f"C{colour}" + ("--" if family["control"] else "-"), label=family["name"])
        axis.axhline(0, color="0.4", linewidth=0.8)
        axis.set(title=f"tau = {first[i]['tau']:g}", xlabel="level", xlim=(0, 1))
    axes[0].set_ylabel("share less level")
    axes[-1].legend(fontsize=7, bbox_to_anchor=(1.02, 1), loc="upper left")
    return page.png(drawn)


def document(result: dict[str, Any]) -> str:
    """The calibration as one self-contained HTML page."""
    title = f"Calibration of {result['recipe']}"
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        "<p>For held-out pairs (x_0, x_tau): is the truth x_0 one of the draws from q(x_0 | x_tau)?</p>",
        "<h2>Verdicts</h2><ul>",
        *(f"<li>{html.escape(sentence)}</li>" for sentence in verdicts(result)),
        "</ul><h2>Figures</h2>",
        *(page.figure(image, caption) for image, caption in figures(result)),
        "<h2>Tables</h2>",
        *(page.table(*table) for table in tables(result)),
        f"<h2>Command</h2><pre>{html.escape(result['command'])}</pre>",
    ]
    return page.document(title, parts)
