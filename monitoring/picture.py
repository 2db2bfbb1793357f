"""picture.py DASHBOARD.json PROMETHEUS-URL FROM TO PICTURE.png

Draws the panels of a dashboard for Grafana: what Prometheus answers to their queries between two times (seconds since
1970).
"""

import json
import re
import sys
import urllib.parse
import urllib.request

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.ticker import FuncFormatter

COLOURS = ["#73bf69", "#fade2a", "#5794f2", "#ff9830", "#f2495c", "#b877d9"]
BACKGROUND, PANEL, TEXT, GRID = "#111217", "#181b1f", "#ccccdc", "#2c3235"
# The units of the dashboard: what is put behind a value, and what it is multiplied by.
UNITS = {"bytes": ("B", 1), "Bps": ("B/s", 1), "s": ("s", 1), "percentunit": ("%", 100)}


def written(value, unit):
    """A value as the axes show it."""
    suffix, factor = UNITS.get(unit, ("", 1))
    value *= factor
    if value and abs(value) < 1 and suffix == "s":
        return f"{value * 1e3:.3g} ms"
    for power, prefix in [(1e9, "G"), (1e6, "M"), (1e3, "k")]:
        if abs(value) >= power and suffix != "%":
            return f"{value / power:.3g} {prefix}{suffix}".strip()
    return f"{value:.3g} {suffix}".strip()


def main(dashboard, prometheus, begin, end, picture):
    begin, end = int(begin), int(end)

    def ask(expression):
        """The series of an expression, each its labels, times and values."""
        for variable, value in [("$__rate_interval", "15s"), ("$instance", ".*"), ("$cluster", ".*")]:
            expression = expression.replace(variable, value)
        query = urllib.parse.urlencode({"query": expression, "start": begin, "end": end, "step": 2})
        with urllib.request.urlopen(f"{prometheus}/api/v1/query_range?{query}") as answer:
            found = json.load(answer)["data"]["result"]
        for series in found:
            points = [(int(at) - begin, float(value)) for at, value in series["values"]]
            yield series["metric"], [at / 60 for at, _ in points], [value for _, value in points]

    with open(dashboard) as file:
        panels = json.load(file)["panels"]
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    figure = pyplot.figure(figsize=(14, 11.2), facecolor=BACKGROUND)
    for panel in panels:
        place, unit = panel["gridPos"], panel["fieldConfig"]["defaults"].get("unit")
        left, width = place["x"] / 24 + 0.04, place["w"] / 24 - 0.055
        axes = figure.add_axes([left, 1 - (place["y"] + place["h"] - 1.4) / rows, width, (place["h"] - 2.6) / rows])
        axes.set_facecolor(PANEL)
        axes.set_title(panel["title"], loc="left", color=TEXT, fontsize=9)
        for spine in axes.spines.values():
            spine.set_color(GRID)
        found = [
            (re.sub(r"{{(\w+)}}", lambda name: labels.get(name[1], ""), target.get("legendFormat") or ""), times, values)
            for target in panel["targets"]
            for labels, times, values in ask(target["expr"])
        ]
        if panel["type"] == "stat":
            value = written(found[0][2][-1], unit) if found else "no data"
            axes.text(0.5, 0.5, value, color=COLOURS[0], fontsize=16, ha="center", va="center", transform=axes.transAxes)
            axes.set_xticks([])
            axes.set_yticks([])
            continue
        for number, (name, times, values) in enumerate(found):
            colour = COLOURS[number % len(COLOURS)]
            # "not a number" leaves a gap.
            axes.plot(times, values, color=colour, linewidth=1, label=name)
            axes.fill_between(times, values, color=colour, alpha=0.1)
        axes.set_xlim(0, (end - begin) / 60)
        axes.set_ylim(bottom=0)
        axes.grid(color=GRID, linewidth=0.5)
        axes.tick_params(colors=TEXT, labelsize=7)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} min"))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _, unit=unit: written(value, unit)))
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=3, fontsize=6, frameon=False, labelcolor=TEXT)
    figure.savefig(picture, dpi=72, facecolor=BACKGROUND)


main(*sys.argv[1:])
