// Runs inside a loaded report in headless Chromium, put there by check.py: does what a reader would and comes to what it saw.
(async () => {
  "use strict";
  const failures = window.failures;
  // Where the checks are, should they not come to an end.
  const at = (stage) => { window.stage = stage; };
  const check = (holds, what) => holds || failures.push(what);
  const all = (selector) => [...document.querySelectorAll(selector)];
  const one = (selector) => document.querySelector(selector);
  // Browsers tell what is near the window, and charts are drawn, frame by frame: so the wait for them is counted in frames, and
  // lasts longer on a slow machine. 600 are ten seconds where nothing slows them down.
  const frame = () => new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
  const until = async (holds) => { for (let frames = 0; frames < 600 && !holds(); frames++) await frame(); };
  try {
    at("table");
    const rows = () => all(".concepts tbody tr[data-concept]");
    const shown = () => rows().filter((row) => row.getClientRects().length > 0);
    const enter = (element, value) => { element.value = value; element.dispatchEvent(new Event("input", { bubbles: true })); };
    const total = rows().length;
    check(total > 1, "there are no concepts");
    check(shown().length === total, "not all concepts are shown at first");

    // Search.
    const name = one(".concepts .title").textContent;
    enter(one("#search"), name.toUpperCase());
    check(shown().length >= 1 && shown().length < total, `searching ${name} shows ${shown().length} of ${total}`);
    const words = name.toLowerCase().split(/\s+/);
    check(shown().every((row) => words.every((word) => row.textContent.toLowerCase().includes(word))), "searching shows what was not searched for");
    check(one("#count").textContent.startsWith(`${shown().length} of ${total}`), "the count is not what is shown");
    enter(one("#search"), "no concept is called this");
    check(shown().length === 0, "searching for nothing finds something");
    enter(one("#search"), "");
    check(shown().length === total, "an empty search hides concepts");

    // Filters: each shows those that it says, and all come back.
    const value = (row, label) => row.querySelector(`td[data-label="${label}"]`).dataset.v;
    enter(one("#show"), "found");
    check(shown().length === rows().filter((row) => +value(row, "FA@5 released") > 0).length, "the filter of what is still found is wrong");
    if (one('#show option[value="costly"]')) {
      enter(one("#show"), "costly");
      check(shown().every((row) => +value(row, "cost, points") >= 0.5), "the filter of costs is wrong");
    }
    enter(one("#show"), "");
    const layer = one("#layer").options[1].value;
    enter(one("#layer"), layer);
    check(shown().length > 0 && shown().every((row) => row.dataset.layer === layer), "the filter of layers is wrong");
    enter(one("#layer"), "");
    check(shown().length === total, "filters do not let go");

    // Sort: numbers as numbers, names as names, both ways.
    for (const [label, numeric] of [["FA@5 before", true], ["λ/R", true], ["concept", false]]) {
      const head = all(".concepts thead th").find((th) => th.textContent === label);
      for (const way of ["ascending", "descending"]) {
        head.querySelector("button").click();
        check(head.getAttribute("aria-sort") === way, `${label} is not sorted ${way}`);
        const keys = rows().map((row) => row.cells[head.cellIndex].dataset.v).map((key) => (numeric ? +key : key));
        const order = (a, b) => (numeric ? a - b : a.localeCompare(b)) * (way === "ascending" ? 1 : -1);
        check(keys.every((key, i) => i === 0 || order(keys[i - 1], key) <= 0), `${label} ${way} is out of order`);
      }
    }

    // A row opens to the charts of its search and its layers where it has them, and closes.
    const title = one(".concepts button.title");
    title.click();
    const inside = ["search", "pareto"].filter((kind) => window.expectedCharts.includes(kind)).length;
    check(all("tr.detail canvas").length === inside, `a row does not open to ${inside} charts`);
    check(all("tr.detail dt").length > 5, "a row does not open to its numbers");

    // Every chart that comes near the window is drawn: its canvases have more than a few colours.
    const pixels = (canvas) => canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    const colours = (data) => {
      const found = new Set();
      for (let i = 0; i < data.length; i += 4) found.add((data[i] << 24) | (data[i + 1] << 16) | (data[i + 2] << 8) | data[i + 3]);
      return found.size;
    };
    for (const box of all(".chart")) {
      at(`chart ${box.dataset.chart}`);
      box.scrollIntoView();
      const most = () => Math.max(0, ...[...box.querySelectorAll("canvas")].map((canvas) => colours(pixels(canvas))));
      await until(() => most() > 5);
      check(most() > 5, `chart ${box.dataset.chart} is not drawn (${most()} colours)`);
    }
    // On paper every chart is a picture on white, whatever the reader's colours, and nothing of it is to be seen on screen.
    dispatchEvent(new Event("beforeprint"));
    dispatchEvent(new Event("beforeprint"));
    for (const box of all(".chart")) {
      const image = box.nextElementSibling;
      const alone = image?.matches("img.paper") && !image.nextElementSibling?.matches("img.paper");
      check(alone, `chart ${box.dataset.chart} has not one picture for paper`);
      if (!alone) continue;
      at(`chart ${box.dataset.chart} on paper`);
      await image.decode();
      const canvas = Object.assign(document.createElement("canvas"), { width: image.naturalWidth, height: image.naturalHeight });
      canvas.getContext("2d").drawImage(image, 0, 0);
      const data = pixels(canvas);
      check(image.naturalWidth > 1000 && colours(data) > 5, `chart ${box.dataset.chart} is blank on paper (${colours(data)} colours)`);
      check([0, 1, 2].every((at) => data[at] === 255), `chart ${box.dataset.chart} is not on white on paper`);
      check(image.getClientRects().length === 0, `chart ${box.dataset.chart} shows its picture for paper on screen`);
    }
    for (const kind of window.expectedCharts) check(all(`.chart[data-chart="${kind}"]`).length > 0, `there is no chart ${kind}`);
    title.click();
    check(all("tr.detail").length === 0, "a row does not close");
    if (one("#pareto") && one("#pareto").options.length > 1) enter(one("#pareto"), "1");

    // Nothing sticks out of the window.
    check(document.documentElement.scrollWidth <= innerWidth, `the page is ${document.documentElement.scrollWidth} wide in ${innerWidth}`);
    check(all(".concepts img").every((image) => image.src.startsWith("data:image/jpeg")), "pictures are not in the page");
    if (window.expectPictures) check(all(".concepts img").length === total, "concepts lack pictures");
    const first = one(".concepts img");
    // Pictures are loaded when they come near the window.
    at("pictures");
    first?.scrollIntoView();
    if (first) { await first.decode(); check(first.naturalHeight === 64, "a picture is not 64 high"); }
  } catch (error) {
    failures.push(`${window.stage}: ${error.stack || error}`);
  }
  return failures.length ? failures.join("\n") : "all well";
})();
