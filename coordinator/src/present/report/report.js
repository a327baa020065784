"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const find = (selector, inside = document) => inside.querySelector(selector);
  const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];
  // Names are put into the page as text, never as HTML.
  const element = (name, text, attributes = {}) => {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  };
  // The page's colours, as the reader has them or for paper ("light").
  const coloured = (scheme = "") => {
    // A probe's colour is the one that light-dark() comes to.
    const probe = document.body.appendChild(element("span"));
    probe.style.colorScheme = scheme;
    const found = {};
    for (const name of ["paper", "panel", "ink", "soft", "line", "one", "two", "mute", "bad"]) {
      probe.style.color = `var(--${name})`;
      found[name] = getComputedStyle(probe).color;
    }
    probe.remove();
    return found;
  };
  const percent = (share, digits = 0) => `${(100 * share).toFixed(digits).replace("-", "−")} %`;
  const number = (value) => (Math.abs(value) >= 1e-3 || value === 0 ? String(+value.toPrecision(3)) : value.toExponential(1)).replace("-", "−");
  const tip = (title, ...lines) => {
    const box = element("div", undefined, { class: "tip" });
    box.append(element("b", title), ...lines.map((line) => element("div", line)));
    return box;
  };

  // Charts.

  const base = (colours) => ({
    animation: false,
    textStyle: { fontFamily: getComputedStyle(document.body).fontFamily, color: colours.ink },
    tooltip: { backgroundColor: colours.panel, borderColor: colours.line, confine: true, textStyle: { color: colours.ink } },
    grid: { left: 8, right: 16, top: 28, bottom: 30, containLabel: true },
  });
  const axis = (colours, name, more = {}) => ({
    type: "value", name, nameLocation: "middle", nameGap: 28, nameTextStyle: { color: colours.soft },
    axisLabel: { color: colours.soft, hideOverlap: true, formatter: more.type === "category" ? undefined : number },
    axisLine: { show: true, lineStyle: { color: colours.line } }, splitLine: { lineStyle: { color: colours.line, opacity: 0.5 } }, ...more,
  });
  const upright = (colours, name, more) => axis(colours, name, { nameLocation: "end", nameGap: 10, nameTextStyle: { color: colours.soft, align: "left" }, ...more });
  const zoom = [{ type: "inside", xAxisIndex: 0, filterMode: "none" }, { type: "inside", yAxisIndex: 0, filterMode: "none" }];

  const options = {
    worst: (colours, box) => {
      const rows = data.worst[box.dataset.set];
      const names = rows.map((row) => row[0]);
      const bar = (name, at, fill) => ({ name, type: "bar", barGap: "10%", itemStyle: { color: fill }, data: rows.map((row) => row[at] / Math.max(row[1], 1)) });
      return {
        tooltip: { ...base(colours).tooltip, trigger: "axis", axisPointer: { type: "shadow" }, formatter: ([{ dataIndex: i }]) => {
          const [name, images, before, after] = rows[i];
          return tip(name, `before ${before} of ${images}`, `after ${after} of ${images}`);
        } },
        xAxis: axis(colours, "ranked first: before (grey), after (orange)", { min: 0, max: 1, axisLabel: { color: colours.soft, formatter: (v) => percent(v) } }),
        yAxis: axis(colours, "", { type: "category", data: names, inverse: true, axisLabel: { color: colours.ink, width: 150, overflow: "truncate" } }),
        series: [bar("before", 2, colours.mute), bar("after", 3, colours.two)],
      };
    },

    edited: (colours) => {
      const rows = data.edited.slice(0, 40);
      return {
        tooltip: { ...base(colours).tooltip, trigger: "item", formatter: ({ dataIndex: i }) => tip(data.layers[rows[i][0]], `${rows[i][1]} edits`, `‖Δ‖/‖θ‖ ${number(rows[i][2])}`) },
        xAxis: axis(colours, "edits", { minInterval: 1 }),
        yAxis: axis(colours, "", { type: "category", inverse: true, data: rows.map((row) => data.layers[row[0]]), axisLabel: { color: colours.ink, formatter: (name) => (name.length > 28 ? `…${name.slice(-27)}` : name) } }),
        series: [{ type: "bar", barMaxWidth: 22, itemStyle: { color: colours.one }, data: rows.map((row) => row[1]) }],
      };
    },

    pareto: (colours, box) => {
      const concept = data.concepts[+box.dataset.concept];
      const point = ([layer, importance, alignment, front, text]) => ({ value: [alignment, importance], layer, front, text });
      const points = concept.ranking.map(point);
      const front = (text) => points.filter((p) => p.front && p.text === text).sort((a, b) => a.value[0] - b.value[0]);
      const cloud = (name, text, fill) => ({
        name, type: "scatter", symbolSize: (_, { data: p }) => (p.front ? 9 : 6), data: points.filter((p) => p.text === text),
        itemStyle: { color: fill, opacity: 0.75 },
      });
      const line = (text, fill) => ({ type: "line", silent: true, showSymbol: false, step: "end", lineStyle: { color: fill, width: 1.5 }, data: front(text).map((p) => p.value) });
      const chosen = points.filter((p) => p.layer === concept.layer);
      return {
        tooltip: { ...base(colours).tooltip, trigger: "item", formatter: ({ data: p }) => tip(data.layers[p.layer],
          `importance ${number(p.value[1])}, alignment ${number(p.value[0])}`, p.front ? "on its tower's front" : "not on its tower's front",
          ...(p.layer === concept.layer ? ["has this concept's edit"] : [])) },
        dataZoom: zoom,
        xAxis: axis(colours, "alignment: ● vision tower blue, text tower orange, ◯ chosen"),
        yAxis: upright(colours, "importance"),
        series: [line(0, colours.one), line(1, colours.two), cloud("vision", 0, colours.one), cloud("text", 1, colours.two),
          { type: "scatter", symbol: "circle", symbolSize: 17, data: chosen, itemStyle: { color: "transparent", borderColor: colours.ink, borderWidth: 2 } }],
      };
    },

    search: (colours, box) => {
      const concept = data.concepts[+box.dataset.concept];
      const trials = concept.search.filter(([layer]) => layer === concept.layer).sort((a, b) => a[1] - b[1]);
      const line = (name, at, fill, type) => ({ name, type: "line", symbolSize: 7, symbol: "circle", itemStyle: { color: fill }, lineStyle: { color: fill, type }, data: trials.map((trial) => [trial[1], trial[at]]) });
      return {
        tooltip: { ...base(colours).tooltip, trigger: "item", formatter: ({ dataIndex: i }) => tip(`λ ${number(trials[i][1])}`, `FA@1 ${percent(trials[i][2])}`, `FA@5 ${percent(trials[i][3])}`) },
        xAxis: axis(colours, "step λ: FA@5 blue, FA@1 orange"),
        yAxis: upright(colours, "still recognised", { min: 0, max: 1, axisLabel: { color: colours.soft, formatter: (v) => percent(v) } }),
        series: [line("FA@1", 2, colours.two, "dashed"), line("FA@5", 3, colours.one, "solid")],
      };
    },

    matrix: (colours) => {
      const { order } = data.matrix;
      const bytes = Uint8Array.from(atob(data.matrix.values), (c) => c.charCodeAt(0));
      const view = new DataView(bytes.buffer);
      const n = order.length;
      const cells = [];
      for (let row = 0; row < n; row++) {
        for (let column = 0; column < n; column++) {
          const value = view.getFloat32(4 * (row * n + column), true);
          if (Math.abs(value) >= 0.02) cells.push([column, row, value]);
        }
      }
      const names = order.map((i) => data.concepts[i].name);
      const labels = { show: n <= 40, color: colours.soft, fontSize: 10, interval: 0 };
      const side = (name, more) => axis(colours, n <= 40 ? "" : name, { type: "category", data: names, axisTick: { show: false }, splitLine: { show: false }, axisLabel: labels, ...more });
      return {
        tooltip: { ...base(colours).tooltip, trigger: "item", formatter: ({ value: [column, row, value] }) => tip(
          row === column ? names[row] : `${names[column]} → ${names[row]}`, row === column ? "its own edit: 100 %" : `effect of the edit of ${names[column]} on ${names[row]}: ${percent(value, 1)} of its effect on its own concept`) },
        grid: { left: n <= 40 ? 8 : 24, right: 8, top: 8, bottom: 64, containLabel: n <= 40 },
        xAxis: side("edit of", { axisLabel: { ...labels, rotate: 90 }, nameGap: 8 }),
        yAxis: side("effect on", { inverse: true, nameGap: 8 }),
        dataZoom: zoom,
        visualMap: { type: "continuous", min: -1, max: 1, calculable: false, orient: "horizontal", left: "center", bottom: 0, itemHeight: 160, itemWidth: 12,
          text: ["100 %", "−100 %"], textStyle: { color: colours.soft }, inRange: { color: [colours.bad, colours.paper, colours.one] } },
        series: [{ type: "heatmap", progressive: 0, emphasis: { disabled: n > 150 }, data: cells }],
      };
    },

    raises: (colours) => agreement(colours, data.raises, "predicted rise of the forget loss", "measured fall of the cosine"),
    costs: (colours) => agreement(colours, data.costs, "predicted cost λ²K", "points of TA@1 lost"),
  };

  const agreement = (colours, points, predicted, happened) => ({
    tooltip: { ...base(colours).tooltip, trigger: "item", formatter: ({ value: [x, y, i] }) => tip(data.concepts[i].name, `${predicted}: ${number(x)}`, `${happened}: ${number(y)}`) },
    dataZoom: zoom,
    xAxis: axis(colours, predicted, { scale: true }),
    yAxis: upright(colours, happened, { scale: true }),
    series: [{ type: "scatter", symbolSize: 8, itemStyle: { color: colours.one, opacity: 0.7 }, data: points.map(([i, x, y]) => [x, y, i]) }],
  });

  const drawing = (box, colours) => ({ ...base(colours), ...options[box.dataset.chart](colours, box) });
  const drawn = new Map();
  const draw = (box) => {
    let chart = drawn.get(box);
    if (!chart) {
      chart = echarts.init(box, null, { renderer: "canvas" });
      drawn.set(box, chart);
    }
    chart.setOption(drawing(box, coloured()), true);
  };
  const forget = (box) => {
    drawn.get(box)?.dispose();
    drawn.delete(box);
  };
  const redraw = () => drawn.forEach((chart, box) => { chart.resize(); draw(box); });

  // On paper, every chart is a picture in light colours. Browsers do not print all canvases of a chart, and a chart that was never near
  // the window has none.
  const picture = (box, colours) => {
    const square = box.classList.contains("square");
    // The width between an A4 page's margins, and the chart's height on screen; a square is 16 cm wide, as in the style.
    const width = square ? 605 : 700;
    const height = square ? width : box.clientHeight;
    const chart = echarts.init(element("div"), null, { renderer: "canvas", width, height });
    chart.setOption(drawing(box, colours));
    const image = element("img", undefined, { alt: "", class: "paper", src: chart.getDataURL({ type: "png", pixelRatio: 2, backgroundColor: "#fff" }) });
    chart.dispose();
    if (box.nextElementSibling?.matches("img.paper")) box.nextElementSibling.remove();
    box.after(image);
  };

  // Charts are drawn when they come near the window: those of hundreds of concepts would not all fit in memory.
  const near = new IntersectionObserver((seen) => {
    for (const { target } of seen.filter((one) => one.isIntersecting)) {
      near.unobserve(target);
      if (!drawn.has(target)) draw(target);
    }
  }, { rootMargin: "600px" });

  // The table of concepts.

  const table = find(".concepts");
  const rows = table ? all("tbody tr[data-concept]", table) : [];
  const cells = (row, label) => find(`td[data-label="${label}"]`, row)?.dataset.v ?? "";
  const shows = {
    "": () => true,
    found: (row) => +cells(row, "FA@5 released") > 0,
    unseen: (row) => cells(row, "FA@5 released") === "",
    costly: (row) => +cells(row, "cost, points") >= 0.5,
    twin: (row) => "twin" in row.dataset,
    partial: (row) => row.dataset.strength !== "1",
  };
  const texts = new Map(rows.map((row) => [row, `${row.textContent} ${data.concepts[+row.dataset.concept].id}`.toLowerCase()]));

  const close = (row) => {
    const next = row.nextElementSibling;
    if (!next?.classList.contains("detail")) return;
    all(".chart", next).forEach(forget);
    next.remove();
    find("button.title", row).setAttribute("aria-expanded", "false");
  };
  const open = (row) => {
    const concept = data.concepts[+row.dataset.concept];
    const cell = element("td", undefined, { colspan: row.cells.length });
    const values = element("dl", undefined, { class: "values" });
    for (const [name, value] of concept.facts) {
      const pair = element("div");
      pair.append(element("dt", name), element("dd", value));
      values.append(pair);
    }
    const charts = element("div", undefined, { class: "two" });
    for (const [kind, caption, points] of [["search", "Search on its layer", concept.search], ["pareto", "Its candidate layers", concept.ranking]]) {
      if (!points.length) continue;
      const part = element("div");
      part.append(element("p", caption, { class: "caption" }), element("div", undefined, { class: "chart", "data-chart": kind, "data-concept": row.dataset.concept, role: "img", "aria-label": caption }));
      charts.append(part);
    }
    cell.append(values, charts);
    const detail = element("tr", undefined, { class: "detail" });
    detail.append(cell);
    row.after(detail);
    all(".chart", detail).forEach(draw);
    find("button.title", row).setAttribute("aria-expanded", "true");
  };

  const filter = () => {
    const wanted = find("#search").value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    const [show, layer, group] = ["show", "layer", "group"].map((id) => find(`#${id}`)?.value ?? "");
    let count = 0;
    for (const row of rows) {
      const text = texts.get(row);
      const stays = wanted.every((word) => text.includes(word)) && shows[show](row) && (!layer || row.dataset.layer === layer) && (!group || row.dataset.group === group);
      if (!stays) close(row);
      row.hidden = !stays;
      count += stays;
    }
    find("#count").textContent = count === rows.length ? `${count} concepts` : `${count} of ${rows.length} concepts`;
  };

  const sort = (head) => {
    const column = head.cellIndex;
    const rising = head.getAttribute("aria-sort") !== "ascending";
    all("th", table).forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", rising ? "ascending" : "descending");
    const numeric = head.classList.contains("n");
    const key = (row) => row.cells[column].dataset.v;
    rows.forEach(close);
    // Rows without a value come last in both directions.
    rows.sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      const order = numeric ? x - y : x.localeCompare(y);
      return (rising ? order : -order) || a.dataset.concept - b.dataset.concept;
    });
    find("tbody", table).append(...rows);
  };

  if (table) {
    for (const head of all("thead th", table)) {
      const button = element("button", head.textContent, { type: "button" });
      head.replaceChildren(button);
      button.addEventListener("click", () => sort(head));
    }
    for (const row of rows) {
      const title = find(".title", row);
      const button = element("button", title.textContent, { type: "button", class: "title", "aria-expanded": "false" });
      title.replaceWith(button);
      button.addEventListener("click", () => (row.nextElementSibling?.classList.contains("detail") ? close(row) : open(row)));
    }
    const form = find(".controls");
    form.hidden = false;
    form.addEventListener("input", filter);
    form.addEventListener("submit", (event) => event.preventDefault());
  }

  const pareto = find("#pareto");
  if (pareto) {
    const chart = find('[data-chart="pareto"]');
    pareto.append(...data.concepts.map((concept, i) => element("option", concept.name, { value: i })));
    chart.dataset.concept = 0;
    pareto.addEventListener("input", () => { chart.dataset.concept = pareto.value; draw(chart); });
  }
  all(".scripted").forEach((part) => { part.hidden = false; });
  all('.chart[data-chart="edited"]').forEach((box) => { box.style.height = `${70 + 26 * Math.min(data.edited.length, 40)}px`; });
  all(".chart").forEach((box) => near.observe(box));

  let resized;
  addEventListener("resize", () => { clearTimeout(resized); resized = setTimeout(redraw, 100); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  addEventListener("beforeprint", () => { const colours = coloured("light"); all(".chart").forEach((box) => picture(box, colours)); });
})();
