#!/usr/bin/env python3
"""The end of `make demo-targets`: a table of what is still drawn and named, and a page of pictures.

usage: page.py DRAWN NAMED PAGE

DRAWN and NAMED are what `lethe evaluate --probe --json` printed for the pipeline and for the LLaVA.
"""

import base64
import html
import json
import sys
from pathlib import Path

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222 }
h1 { font-size: 1.5em } h2 { font-size: 1.15em; margin-top: 2em }
table { border-collapse: collapse } td, th { padding: .2em .9em; text-align: right } td:first-child, th:first-child { text-align: left }
tr + tr { border-top: 1px solid #ddd }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); gap: 1.1em }
figure { margin: 0 } figcaption { font-size: .85em; color: #555 }
img { width: 96px; height: 96px; image-rendering: pixelated; border: 1px solid #ddd; vertical-align: middle }
.arrow { padding: 0 .4em; color: #888 }
"""


def read(path):
    evaluated = json.loads(Path(path).read_text().splitlines()[-1])
    store = Path(evaluated["release"]).parents[2]
    return evaluated, evaluated["probes"][0], store


GROUPS = {"removed": "removed", "covered": "retained, covered", "unseen": "retained, never seen"}
# Heading, probe, and the number's name by group.
COLUMNS = (
    ("drawings change by", "drawn", "changed.{}"),
    ("drawn before", "drawn", "drawn.{}"),
    ("drawn now", "drawn", "still.{}"),
    ("named before", "named", "right.{}"),
    ("named now", "named", "still.{}"),
)


def table(**numbers):
    """Rows of text, the headings first; columns that were not measured are left out."""
    percent = lambda value: "" if value is None else f"{100 * value:.0f} %"
    columns = [("classes", list(GROUPS.values()))]
    for head, probe, name in COLUMNS:
        values = [numbers[probe].get(name.format(group)) for group in GROUPS]
        if any(value is not None for value in values):
            columns.append((head, list(map(percent, values))))
    return [[head for head, _ in columns], *map(list, zip(*(cells for _, cells in columns)))]


def printed(rows):
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  " + row[0].ljust(widths[0]) + "".join("  " + cell.rjust(width) for cell, width in zip(row[1:], widths[1:])))


def picture(store, artifact):
    name = artifact["digest"]
    path = store / "artifacts" / name[:2] / name
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">'


def gallery(probe, store):
    figures = []
    for shown in probe["pictures"]:
        before = f'{picture(store, shown["before"])}<span class="arrow">→</span>' if "before" in shown else ""
        figures.append(f'<figure>{before}{picture(store, shown["after"])}<figcaption>{html.escape(shown["title"])}</figcaption></figure>')
    return '<div class="pictures">' + "\n".join(figures) + "</div>"


def main():
    (drawn_release, drawn, store), (named_release, named, _) = read(sys.argv[1]), read(sys.argv[2])
    rows = table(drawn=drawn["numbers"], named=named["numbers"])
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows[1:])
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in rows[0])
    page = Path(sys.argv[3])
    page.write_text(f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>What a pipeline draws and a LLaVA names, without a hundred concepts</title><style>{STYLE}</style></head>
<body>
<h1>A hundred concepts removed: what the pipeline draws and the LLaVA names</h1>
<p>The pipeline has the edits of the text tower, the LLaVA those of the vision tower. Neither was trained further. Named: the answer to “what is this ?” about a drawing that nothing was trained on holds the class's name.</p>
<table><tr>{head}</tr>{body}</table>
<h2>The pipeline, before and after, from the same noise</h2>
{gallery(drawn, store)}
<h2>The LLaVA, asked what it sees</h2>
{gallery(named, store)}
<p>Releases: {html.escape(drawn_release["release"])}, {html.escape(named_release["release"])}</p>
</body></html>
""")
    print()
    printed(rows)
    print(f"\n  releases  {drawn_release['release']}\n            {named_release['release']}\n  pictures  {page.resolve()}")


if __name__ == "__main__":
    main()
