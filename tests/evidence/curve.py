#!/usr/bin/env python3
"""Draws what rivals.py --curve measured, and prints it as a table.

usage: curve.py RESULTS SVG

Rows of several seeds are averaged.
"""

import csv
import sys
from html import escape
from pathlib import Path

# Method, its name here, and its colours on a light and on a dark page.
METHODS = (
    ("Lethe, `least-squares` (default)", "Lethe", "#0969da", "#4493f8"),
    ("EMCID", "EMCID", "#9a6700", "#d29922"),
    ("retained 1: EMCID", "EMCID, retained 1", "#bc4c00", "#db6d28"),
    ("both at once", "ascent and fine-tuning", "#cf222e", "#f85149"),
    ("SSD", "SSD", "#1a7f37", "#3fb950"),
    ("SLUG's edits, `sum`", "SLUG, sum", "#8250df", "#ab7df8"),
)
PANELS = (
    ("fa5", "Forget images still found, FA@5", "lower is better"),
    ("against_1", "Removed name against one kept", "50 is chance"),
    ("covered_ta1_kept", "Covered classes kept, TA@1", "higher is better"),
    ("never_seen_ta1_kept", "Never-seen classes kept, TA@1", "higher is better"),
)
WIDTH, HEIGHT, LEFT, TOP, ACROSS, DOWN = 300, 150, 48, 96, 372, 226


def read(path):
    """Means over seeds: `{method: {concepts: {column: value}}}`, and how many seeds each has."""
    rows = {}
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            rows.setdefault(row["method"], {}).setdefault(int(row["concepts"]), []).append(row)
    columns = ("fa1", "fa5", "removed_ta5", "covered_ta1_kept", "covered_ta5_kept", "never_seen_ta1_kept", "never_seen_ta5_kept", "against_1", "search_r1", "texts", "seconds", "megabytes")

    def mean(found, column):
        values = [float(row[column]) for row in found if row[column]]
        return sum(values) / len(values) if values else None

    return {
        method: {count: {column: mean(found, column) for column in columns} | {"draws": len(found)} for count, found in sorted(counts.items())}
        for method, counts in rows.items()
    }


def table(results):
    shown = lambda value, digits=0: "" if value is None else f"{value:.{digits}f}"
    print("| concepts | method | FA@1/5, % | removed TA@5, % | covered kept, % | never seen kept, % | against 1, % | search R@1, % | texts | processor s | MB | draws |")
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for count in sorted({count for counts in results.values() for count in counts}):
        for method, name in (("base", "base model"), *((method, name) for method, name, _, _ in METHODS)):
            row = results.get(method, {}).get(count)
            if row:
                pair = lambda group: f"{shown(row[group + '_ta1_kept'])}/{shown(row[group + '_ta5_kept'])}"
                cells = [f"{shown(row['fa1'], 1)}/{shown(row['fa5'], 1)}", shown(row["removed_ta5"]), pair("covered"), pair("never_seen")]
                cells += [shown(row["against_1"]), shown(row["search_r1"]), shown(row["texts"], 2), shown(row["seconds"]), shown(row["megabytes"])]
                print(f"| {count} | {name} | {' | '.join(cells)} | {row['draws']} |")


def panel(results, column, title, note, counts):
    x = lambda count: counts.index(count) * WIDTH / max(len(counts) - 1, 1)
    most = 125 if column.endswith("kept") else 100
    y = lambda value: HEIGHT * (1 - min(value, most) / most)
    parts = [f'<text class="head" x="0" y="-24">{escape(title)}</text><text class="quiet" x="0" y="-8">%, {escape(note)}</text>']
    for value in range(0, most + 1, 25):
        parts.append(f'<line class="grid" x1="0" x2="{WIDTH}" y1="{y(value):.0f}" y2="{y(value):.0f}"/>')
        parts.append(f'<text class="quiet" x="-8" y="{y(value) + 4:.0f}" text-anchor="end">{value}</text>')
    for count in counts:
        parts.append(f'<text class="quiet" x="{x(count):.0f}" y="{HEIGHT + 18}" text-anchor="middle">{count}</text>')
    for place, (method, *_) in enumerate(METHODS):
        found = [(x(count), y(row[column])) for count, row in results.get(method, {}).items() if row[column] is not None]
        if found:
            points = " ".join(f"{across:.1f},{down:.1f}" for across, down in found)
            parts.append(f'<polyline class="m{place}" points="{points}"/>')
            parts += [f'<circle class="f{place}" cx="{across:.1f}" cy="{down:.1f}" r="3.5"/>' for across, down in found]
    return "\n    ".join(parts)


def draw(results):
    counts = sorted({count for rows in results.values() for count in rows})
    present = [(place, name) for place, (method, name, _, _) in enumerate(METHODS) if method in results]
    wide, high = LEFT + ACROSS + WIDTH + 24, TOP + DOWN + HEIGHT + 52
    colours = lambda which: "".join(f" .m{i} {{ stroke: {m[which]} }} .f{i} {{ fill: {m[which]} }}" for i, m in enumerate(METHODS))
    key, across = [], LEFT
    for place, name in present:
        key.append(f'<circle class="f{place}" cx="{across}" cy="40" r="5"/><text x="{across + 11}" y="44">{escape(name)}</text>')
        across += 44 + 7.2 * len(name)
    panels = [
        f'<g transform="translate({LEFT + ACROSS * (i % 2)} {TOP + DOWN * (i // 2)})">\n    {panel(results, *one, counts)}\n  </g>' for i, one in enumerate(PANELS)
    ]
    return f"""<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="{high}" viewBox="0 0 {wide} {high}" role="img" aria-labelledby="title description">
  <title id="title">Methods of unlearning over the number of removed concepts</title>
  <desc id="description">Four panels over the number of concepts removed from the demo's model: forget images still found, how often the removed name beats one kept name, and the accuracy that covered and never-seen classes keep.</desc>
  <style>
    text {{ font: 13px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328 }}
    .head {{ font-weight: 600 }}
    .quiet {{ fill: #59636e }}
    .grid {{ stroke: #d1d9e0 }}
    polyline {{ fill: none; stroke-width: 2.5; stroke-linejoin: round }}
   {colours(2)}
    @media (prefers-color-scheme: dark) {{
      text {{ fill: #e6edf3 }}
      .quiet {{ fill: #9198a1 }}
      .grid {{ stroke: #3d444d }}
     {colours(3)}
    }}
  </style>
  <text class="head" x="{LEFT}" y="20">By the number of concepts removed from the demo's model</text>
  {"".join(key)}
  {chr(10).join(panels)}
</svg>
"""


def main():
    results = read(sys.argv[1])
    table(results)
    Path(sys.argv[2]).write_text(draw(results))


if __name__ == "__main__":
    main()
