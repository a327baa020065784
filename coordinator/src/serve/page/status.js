// Draws the state that the coordinator sends. Names are inserted as text, never as markup.
"use strict";

const make = (tag, text, cls) => {
  const node = document.createElement(tag);
  if (text !== undefined && text !== null) node.textContent = text;
  if (cls) node.className = cls;
  return node;
};

const span = (seconds) => {
  if (seconds === null || seconds === undefined) return "";
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 60) return `${Math.round(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
  return `${Math.floor(seconds / 3600)} h ${Math.floor(seconds % 3600 / 60)} min`;
};

const when = (unix) => new Date(1000 * unix).toLocaleString();

const table = (heads, rows) => {
  const node = make("table");
  const around = make("div", null, "wide");
  around.append(node);
  const head = node.createTHead().insertRow();
  heads.forEach((text) => head.append(make("th", text)));
  const body = node.createTBody();
  rows.forEach((cells) => {
    const row = body.insertRow();
    cells.forEach((cell) => row.append(cell instanceof Node ? wrap(cell) : make("td", cell)));
  });
  return around;
};

const wrap = (node) => { const cell = make("td"); cell.append(node); return cell; };

const bar = (done, total) => {
  const node = make("progress");
  node.max = Math.max(total, 1);
  node.value = done;
  node.textContent = `${done}/${total}`;
  return node;
};

const facts = (pairs) => {
  const list = make("dl");
  pairs.filter(([, value]) => value).forEach(([name, value]) => list.append(make("dt", name), make("dd", value)));
  return list;
};

// Report, record and card of a finished run's release, from this server.
const files = (run) => {
  const line = make("p", null, "files");
  [["report", "report.html"], ["record", "composition.json"], ["model card", "README.md"]].forEach(([name, file]) => {
    const link = make("a", name);
    link.href = `runs/${encodeURIComponent(run.run)}/${file}`;
    line.append(link);
  });
  return line;
};

// Titles of phases whose names in the API are older than today's terms.
const titles = new Map([["doses", "coefficients"]]);
const titled = (name) => titles.get(name) ?? name;

const drawRun = (run, now) => {
  const node = make("article");
  const title = make("h3");
  title.append(make("span", run.run), make("span", run.state, `state ${run.state}`));
  const since = span(Math.max(0, now - run.since));
  title.append(make("span", `${run.exit_code === null ? `for ${since}` : `${since} ago`}, submitted ${when(run.submitted)}`, "quiet"));
  node.append(title);
  if (run.problem) node.append(make("p", run.problem, "problem"));
  if (run.live) {
    const live = run.live;
    if (live.stage) node.append(make("p", `now: ${titled(live.stage)}`));
    if (live.phases.length) {
      node.append(table(["phase", "jobs", "", "per minute", "elapsed", "remaining"], live.phases.map((phase) => [
        titled(phase.name), `${phase.done}/${phase.total}` + (phase.found ? ` (${phase.found} reused)` : ""), bar(phase.done, phase.total),
        phase.per_minute ?? "", span(phase.seconds), span(phase.seconds_left),
      ])));
    }
    if (live.workers.length) {
      node.append(table(["worker", "job", "elapsed"], live.workers.map((worker) => [worker.name, worker.job, span(worker.seconds)])));
    }
    if (live.paused.length) {
      node.append(table(["paused worker", "reason"], live.paused.map((worker) => [worker.name, make("p", worker.reason, "problem")])));
    }
    live.problems.slice(-5).forEach((problem) => node.append(make("p", problem, "problem")));
  }
  node.append(facts([["plan name", run.plan], ["coordinator", run.coordinator], ["release", run.release], ["digest", run.digest]]));
  if (run.release && run.exit_code !== null) node.append(files(run));
  return node;
};

const draw = (all) => {
  document.getElementById("who").textContent = `${all.coordinator}, version ${all.version}`;
  const runs = all.runs.map((run) => drawRun(run, all.now));
  document.getElementById("runs").replaceChildren(...(runs.length ? runs : [make("p", "none yet", "quiet")]));
  const letters = all.dead_letters.slice().reverse().map((letter) => [
    letter.job ?? letter.letter, letter.run ?? "", letter.class, letter.attempts, make("p", letter.error, "problem"), letter.worker,
    when(letter.time),
  ]);
  document.getElementById("dead").replaceChildren(letters.length
    ? table(["job", "run", "error class", "attempts", "error", "reported by", "time"], letters) : make("p", "none", "quiet"));
};

const link = document.getElementById("link");
const events = new EventSource("api/v1/events");
events.onopen = () => { link.textContent = "live"; };
events.onerror = () => { link.textContent = "connection lost, reconnecting …"; };
events.onmessage = (event) => draw(JSON.parse(event.data));
