#!/usr/bin/env python3
"""Opens a report in headless Chromium and holds it to what a reader does with it: search, filter, sort, open, look.

usage: check.py REPORT.html

In a wide window, in a narrow one, and with dark colours; without a network, errors or warnings on the console; without scripts; and as
it comes out of a printer, from a browser with dark colours.
"""
import html
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import zlib

CHARTS = ["worst", "pareto", "search", "matrix", "raises", "costs"]
SECONDS = 120

# What goes wrong before or beside the checks is a failure too.
WATCH = """<script>
window.failures = []; window.expectedCharts = %s; window.expectPictures = true;
addEventListener("error", (event) => failures.push("error: " + (event.message || event.target.tagName)), true);
addEventListener("unhandledrejection", (event) => failures.push("rejected: " + event.reason));
addEventListener("securitypolicyviolation", (event) => failures.push("policy: " + event.violatedDirective + " " + event.blockedURI));
for (const level of ["error", "warn"]) console[level] = (...said) => failures.push("console: " + said.join(" "));
</script>""" % CHARTS


def chromium() -> str:
    for name in ["chromium", "chromium-browser", "google-chrome"]:
        if found := shutil.which(name):
            return found
    sys.exit("report: error: chromium is needed (Debian: apt-get install chromium)")


def browse(page: pathlib.Path, *options: str, do: str = "--dump-dom") -> str:
    """The page's text after its scripts have run, or what else is to be done with it."""
    with tempfile.TemporaryDirectory() as profile:
        command = [
            chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
            "--disable-sync", "--no-first-run", "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={profile}",
            "--virtual-time-budget=60000", do, *options, page.as_uri(),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        if done.returncode:
            sys.exit(f"report: error: chromium ended with {done.returncode}: {done.stderr[-2000:]}")
        return done.stdout


def pictures(printed: bytes) -> list[tuple[int, int, int]]:
    """Width, height and number of colours of each picture in a PDF that Chromium wrote; photographs (JPEG) are none of ours."""
    found = []
    for head in re.finditer(rb"<<(?:(?!>>|<<).)*/Subtype /Image(?:(?!>>|<<).)*>>\s*stream\r?\n", printed, re.S):
        if b"/Filter /FlateDecode" not in head.group():
            continue
        width, height, length = (int(re.search(rb"/%s (\d+)" % name, head.group()).group(1)) for name in [b"Width", b"Height", b"Length"])
        samples = zlib.decompress(printed[head.end() : head.end() + length])
        # Masks have one sample a pixel.
        if len(samples) == 3 * width * height:
            found.append((width, height, len({samples[at : at + 3] for at in range(0, len(samples), 3)})))
    return found


def main() -> None:
    report = pathlib.Path(sys.argv[1])
    text = report.read_text(encoding="utf-8")
    check = pathlib.Path(__file__).with_name("check.js").read_text(encoding="utf-8")
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        watched = pathlib.Path(folder) / "watched.html"
        watched.write_text(text.replace("<style>", WATCH + "<style>", 1).replace("</body>", f"<script>{check}</script></body>"), encoding="utf-8")
        views = {"wide": ["--window-size=1280,900"], "narrow": ["--window-size=500,900"], "dark": ["--window-size=1280,900", "--force-dark-mode"]}
        for name, options in views.items():
            found = re.search(r'<pre id="verdict">(.*?)</pre>', browse(watched, *options), re.S)
            verdict = html.unescape(found.group(1)) if found else "the checks did not come to an end"
            print(f"report: {name}: {verdict}")
            failed += [name] if verdict != "all well" else []
        # What is to be read stands in the page itself.
        silent = pathlib.Path(folder) / "silent.html"
        silent.write_text(re.sub(r"<script.*?</script>", "", text, flags=re.S), encoding="utf-8")
        dom = browse(silent)
        for expected in ["What must stay", "Removed concepts", "FA@5 before", "Interference"]:
            if expected not in dom:
                print(f"report: without scripts: `{expected}` is missing")
                failed.append("without scripts")
        # Each chart is on paper, and none is blank.
        paper = pathlib.Path(folder) / "paper.pdf"
        browse(report, "--no-pdf-header-footer", "--force-dark-mode", do=f"--print-to-pdf={paper}")
        charts = [picture for picture in pictures(paper.read_bytes()) if picture[0] > 1000]
        print(f"report: on paper: {charts}")
        if len(charts) < text.count('class="chart') or any(colours <= 5 for _, _, colours in charts):
            print("report: on paper: charts are missing or blank")
            failed.append("on paper")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
