/** The matrix of the explorer: which variant keeps which property, over every interleaving. */

import { complaint, get, send } from "../../live/api.js";
import { curl } from "../../live/curl.js";
import { el, put, say, sync } from "../../page/dom.js";
import { count, duration } from "../../page/format.js";
import * as url from "../../page/url.js";
import { counterexample } from "./counterexample.js";

const POLL_MS = 500;
const OVER = new Set(["done", "failed", "cancelled", "finished", "completed", "error"]);
const VERDICTS = { holds: ["✓", "holds: proved for every interleaving"], violated: ["✕", "violated: open the counterexample"], undecided: ["?", "undecided: a bound was met"], vacuous: ["–", "vacuous: what the property is about never occurs here"], pending: ["…", "not decided yet"] };
const CHOSEN = { variants: ["none", "sticky", "clear_after_up_write", "global_rwsem", "holds"], behaviours: ["careless"], properties: ["missing_slot", "spurious_mmio", "bounded_busy", "lost_exit", "kick_returns", "resume_runs"] };

export function explorer(root, app) {
  const form = el("form", { class: "explore", onsubmit: (event) => (event.preventDefault(), void begin()) });
  const word = el("p", { class: "story", role: "status" });
  const line = el("code", { class: "line" });
  const matrix = el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Verdicts" });
  const cell = counterexample();
  put(root, form, line, word, matrix, cell.node);
  let job = null;
  let asked = null;
  let stopped = false;
  let opened = "";

  void app.info.then((info) => info && offer(info));

  function offer(info) {
    const scenario = el("select", { id: "scenario" }, info.scenarios.map((name) => el("option", { value: name }, name)));
    const numbers = [["vcpus", "vCPUs", 1], ["vmms", "VMMs", 1]].map(([name, label, value]) => el("label", {}, label, el("input", { type: "number", name, min: 1, max: 4, value })));
    const boxes = (name, values, chosen) => el("fieldset", { name }, el("legend", {}, name), values.map((value) => {
      const box = el("input", { type: "checkbox", name, value, onchange: preview });
      box.checked = chosen.includes(value);
      return el("label", { class: "check" }, box, value);
    }));
    const start = el("button", { class: "primary", id: "explore" }, "Explore");
    put(form, el("div", { class: "tools" }, el("label", {}, "Scenario", scenario), numbers, start),
      el("details", {}, el("summary", {}, "Variants, behaviours and properties"),
        boxes("variants", info.variants.map(({ name }) => name), CHOSEN.variants), boxes("behaviours", ["well", "careless"], CHOSEN.behaviours), boxes("properties", info.properties, CHOSEN.properties)));
    form.addEventListener("change", preview);
    preview();
  }

  function wanted() {
    const data = new FormData(form);
    return {
      scenario: /** @type {any} */ (form.querySelector("#scenario")).value, variants: data.getAll("variants"), behaviours: data.getAll("behaviours"),
      vcpus: Number(data.get("vcpus")), vmms: Number(data.get("vmms")), properties: data.getAll("properties"),
    };
  }

  function preview() {
    say(line, curl({ method: "POST", path: "/explorations", body: wanted() }));
  }

  async function begin() {
    asked = wanted();
    say(word, "starting …");
    const answer = await send({ method: "POST", path: "/explorations", body: asked });
    if (!answer.ok) {
      say(word, [404, 405, 501].includes(answer.status) ? absent : complaint(answer));
      return;
    }
    url.write({ exploration: answer.data.id, cell: "" });
    await watch(answer.data.id);
  }

  /** Ask for the job until it is over; an event about it would only say that there is something to ask for. */
  async function watch(id) {
    for (let after = -1; !stopped && url.get("exploration") === String(id); ) {
      const seq = app.store.exploration?.data.seq ?? 0;
      if (seq !== after || !job || !OVER.has(job.state)) {
        const answer = await send({ method: "GET", path: `/explorations/${encodeURIComponent(id)}` });
        if (answer.status === 404) return say(word, "That exploration is not known to the server any more.");
        if (answer.ok) job = answer.data;
      }
      after = seq;
      if (job) draw();
      if (OVER.has(job?.state)) return;
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    }
  }

  function draw() {
    const cells = job.cells ?? [];
    const plan = asked ?? job.asked;
    const rows = unique(cells.map(rowName), product(plan.variants ?? [], plan.behaviours ?? []).map(([variant, behaviour]) => `${variant} · ${behaviour}`));
    const columns = unique(cells.map(({ property }) => property), plan.properties ?? []);
    const found = new Map(cells.map((cell) => [`${rowName(cell)}/${cell.property}`, cell]));
    const decided = cells.filter(({ verdict }) => VERDICTS[verdict] && verdict !== "pending").length;
    say(word, `${job.state}: ${decided} of ${rows.length * columns.length} cells decided${OVER.has(job.state) ? "" : progress(job.progress)}${job.error ? `. ${job.error}` : ""}`);
    let table = matrix.querySelector("table");
    if (!table || table.dataset.key !== `${rows}/${columns}`) {
      table = el("table", { class: "matrix", dataset: { key: `${rows}/${columns}` } }, el("caption", { class: "unseen" }, "Verdict by variant and property"),
        el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "variant · userspace"), columns.map((name) => el("th", { scope: "col" }, el("span", {}, name))))), el("tbody"));
      put(matrix, table);
    }
    sync(table.tBodies[0], rows, (row) => row, (row) => el("tr", {}, el("th", { scope: "row" }, row), columns.map(() => el("td", {}))), (node, row) => {
      columns.forEach((property, n) => fillCell(node.children[n + 1], found.get(`${row}/${property}`), `${row}/${property}`));
    });
    const wantedCell = url.get("cell");
    if (wantedCell && wantedCell !== opened && found.get(wantedCell)?.verdict) show(found.get(wantedCell), wantedCell);
  }

  function fillCell(node, cell, name) {
    const verdict = VERDICTS[cell?.verdict] ? cell.verdict : "pending";
    if (node.dataset.verdict === verdict) return;
    node.dataset.verdict = verdict;
    const [mark, meaning] = VERDICTS[verdict];
    const facts = cell?.states ? ` ${count(cell.states)} states, ${duration((cell.seconds ?? 0) * 1e9)}` : "";
    const content = [el("span", { class: "mark", "aria-hidden": "true" }, mark), el("span", { class: "word" }, verdict === "pending" ? "" : verdict)];
    put(node, verdict === "pending" ? el("span", { class: "cell", title: meaning }, content) : el("button", { type: "button", class: "cell", title: meaning + facts, "aria-label": `${name}: ${verdict}`, onclick: () => show(cell, name) }, content));
  }

  function show(cell_, name) {
    opened = name;
    url.write({ cell: name });
    cell.show(cell_);
  }

  const id = url.get("exploration");
  if (id) void watch(id);
  else void get("/openapi.json").then((api) => say(word, api && !api.paths["/explorations"] ? absent : "Nothing explored from this page yet. A verdict of holds is a proof for the given number of vCPUs and VMMs: every interleaving was looked at, endless loops included."));
  return () => {
    stopped = true;
    cell.stop();
  };
}

const absent = "This server has no explorer behind /explorations (yet). On the command line: kickstand explore --matrix";

function rowName({ variant, behaviour }) {
  return `${variant} · ${behaviour}`;
}

function unique(...lists) {
  return [...new Set(lists.reverse().flat())];
}

function product(a, b) {
  return a.flatMap((x) => b.map((y) => [x, y]));
}

function progress({ cells_done: done, cells, search }) {
  return `, ${done} of ${cells} searches over${search ? `, ${count(search.states)} states in this one` : ""}`;
}
