#!/usr/bin/env python3
"""Opens a report in headless Chromium and holds it to what a reader does with it: search, filter, sort, open, look.

usage: check.py REPORT.html [CHART…]

In a wide window, in a narrow one, and with dark colours; without a network, errors or warnings on the console; without scripts; and as
it comes out of a printer, from a browser with dark colours. The charts are those that this report must have: by default all.
"""
import base64
import collections.abc
import contextlib
import json
import os
import pathlib
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zlib

CHARTS = sys.argv[2:] or ["worst", "pareto", "search", "matrix", "raises", "costs"]
# The longest wait for one thing: the browser's start, a page's load, all checks of a view. Each usually takes a second or two.
SECONDS = 120

# What goes wrong before or beside the checks is a failure too.
WATCH = """
window.failures = []; window.stage = "load"; window.expectedCharts = %s; window.expectPictures = true;
addEventListener("error", (event) => failures.push("error: " + (event.message || event.target.tagName)), true);
addEventListener("unhandledrejection", (event) => failures.push("rejected: " + event.reason));
addEventListener("securitypolicyviolation", (event) => failures.push("policy: " + event.violatedDirective + " " + event.blockedURI));
for (const level of ["error", "warn"]) console[level] = (...said) => failures.push("console: " + said.join(" "));
""" % json.dumps(CHARTS)
STATE = """`at ${stage}: the document is ${document.readyState} and ${document.visibilityState}; failures so far: ${failures}`"""


def chromium() -> str:
    for name in ["chromium", "chromium-browser", "google-chrome"]:
        if found := shutil.which(name):
            return found
    sys.exit("report: error: chromium is needed (Debian: apt-get install chromium)")


class Page:
    """The browser's page, over the browser's debugging pipe (Chrome DevTools Protocol): messages in JSON, each ended by a NUL."""

    def __init__(self, process: subprocess.Popen) -> None:
        self.process, self.begun, self.seen, self.calls, self.session = process, b"", [], 0, {}
        self.call("Target.setDiscoverTargets", discover=True, filter=[{"type": "page"}])
        target = self.event("Target.targetCreated")["targetInfo"]["targetId"]
        self.session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        self.call("Page.enable")
        self.call("Page.setLifecycleEventsEnabled", enabled=True)

    def wait(self, wanted: collections.abc.Callable[[dict], bool], seconds: float = SECONDS) -> dict:
        """The first message that is wanted. It may be there already: events can overtake the answer to their call."""
        end = time.monotonic() + seconds
        while not (found := next(filter(wanted, self.seen), None)):
            if any(message.get("method") == "Target.targetCrashed" for message in self.seen):
                raise EOFError("the page crashed")
            if not select.select([self.process.stdout], [], [], max(0, end - time.monotonic()))[0]:
                raise TimeoutError(f"chromium did not answer in {seconds} s")
            if not (more := os.read(self.process.stdout.fileno(), 1 << 20)):
                raise EOFError("chromium ended")
            *whole, self.begun = (self.begun + more).split(b"\0")
            self.seen += map(json.loads, whole)
        return found

    def event(self, name: str, /, **about: object) -> dict:
        return self.wait(lambda message: message.get("method") == name and about.items() <= message["params"].items())["params"]

    def call(self, method: str, seconds: float = SECONDS, **parameters: object) -> dict:
        self.calls += 1
        call = {"id": self.calls, "method": method, "params": parameters, **self.session}
        self.process.stdin.write(json.dumps(call).encode() + b"\0")
        answer = self.wait(lambda message: message.get("id") == self.calls, seconds)
        if "error" in answer:
            sys.exit(f"report: error: {method}: {answer['error']}")
        return answer["result"]

    def open(self, page: pathlib.Path) -> None:
        loader = self.call("Page.navigate", url=page.resolve().as_uri())["loaderId"]
        self.event("Page.lifecycleEvent", name="load", loaderId=loader)

    def evaluate(self, script: str, seconds: float = SECONDS) -> str:
        """What the script comes to, in the end where that is a promise."""
        done = self.call("Runtime.evaluate", seconds, expression=script, awaitPromise=True, returnByValue=True)["result"]
        return str(done.get("value", done.get("description")))


@contextlib.contextmanager
def browse(*options: str) -> collections.abc.Iterator[Page]:
    """A browser without a network, in a profile of its own. Time is real: pictures and frames take what they take."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, tempfile.TemporaryFile() as said:
        # It reads the pipe from file descriptor 3 and writes it to 4.
        command = [
            "sh", "-c", 'exec "$@" 3<&0 4>&1 </dev/null >&2', "sh", chromium(), "--headless", "--no-sandbox", "--disable-gpu",
            "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run",
            "--host-resolver-rules=MAP * ~NOTFOUND", "--remote-debugging-pipe", f"--user-data-dir={profile}", *options,
            "about:blank",
        ]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": said, "bufsize": 0}
        with subprocess.Popen(command, start_new_session=True, **pipes) as process:
            try:
                yield Page(process)
            except (EOFError, BrokenPipeError, TimeoutError) as error:
                said.seek(0)
                sys.exit(f"report: error: {error}: {said.read().decode(errors='replace')[-2000:]}")
            finally:
                os.killpg(process.pid, signal.SIGKILL)


def verdict(report: pathlib.Path, options: list[str]) -> str:
    check = pathlib.Path(__file__).with_name("check.js").read_text(encoding="utf-8")
    with browse(*options) as page:
        page.call("Page.addScriptToEvaluateOnNewDocument", source=WATCH)
        try:
            page.open(report)
            return page.evaluate(check)
        except TimeoutError:
            with contextlib.suppress(TimeoutError):
                return f"the checks did not come to an end, {page.evaluate(STATE, seconds=10)}"
            return "the checks did not come to an end, and the page does not answer"


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
    failed = []
    wide, narrow = "--window-size=1280,900", "--window-size=500,900"
    for name, options in {"wide": [wide], "narrow": [narrow], "dark": [wide, "--force-dark-mode"]}.items():
        found = verdict(report, options)
        print(f"report: {name}: {found}")
        failed += [name] if found != "all well" else []
    # What is to be read stands in the page itself.
    with browse() as page:
        page.call("Emulation.setScriptExecutionDisabled", value=True)
        page.open(report)
        shown = page.evaluate("document.body.innerText")
    for expected in ["Use this release", "Retained classes", "Removed concepts", "FA@5 before"] + ["Effect matrix"] * ("matrix" in CHARTS):
        if expected not in shown:
            print(f"report: without scripts: `{expected}` is missing")
            failed.append("without scripts")
    # Each chart is on paper, and none is blank.
    with browse("--force-dark-mode") as page:
        page.open(report)
        paper = base64.b64decode(page.call("Page.printToPDF", printBackground=True, preferCSSPageSize=True)["data"])
    charts = [picture for picture in pictures(paper) if picture[0] > 1000]
    print(f"report: on paper: {charts}")
    if len(charts) < text.count('class="chart') or any(colours <= 5 for _, _, colours in charts):
        print("report: on paper: charts are missing or blank")
        failed.append("on paper")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
