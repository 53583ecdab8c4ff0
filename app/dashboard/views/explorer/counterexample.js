/** A counterexample in columns, one step a row, with timeline, memory map and shared state in step. */

import { copy } from "../../live/curl.js";
import { el, put, say } from "../../page/dom.js";
import { count, duration } from "../../page/format.js";
import { moment } from "./moment.js";

export function counterexample() {
  const head = el("h3", {});
  const facts = el("p", { class: "about" });
  const slider = el("input", { type: "range", min: 0, value: 0, "aria-label": "Step", oninput: () => go(Number(slider.value)) });
  const back = el("button", { type: "button", class: "small", onclick: () => go(at - 1) }, "← Back");
  const on = el("button", { type: "button", class: "small", onclick: () => go(at + 1) }, "Step →");
  const text = el("p", { class: "step", "aria-live": "polite" });
  const scene = moment((step) => go(step));
  const shared = el("dl", { class: "shared", "aria-label": "Shared state after this step" });
  const columns = el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Steps in columns" });
  const replay = el("code", { class: "line" });
  const copied = el("button", { type: "button", class: "small", onclick: async () => say(copied, (await copy(replay.textContent)) ? "Copied" : "Select it by hand") }, "Copy");
  const download = el("a", { download: "counterexample.json", class: "button small" }, "Download JSON");
  const body = el("div", {}, el("div", { class: "tools" }, back, on, slider), text, scene.node, el("h4", {}, "Shared state after this step"), shared, columns);
  const node = el("section", { class: "counterexample", "aria-label": "Cell", hidden: true }, head, facts, el("div", { class: "tools" }, replay, copied, download), body);
  let rows = [];
  let threads = [];
  let at = 0;
  let address = "";
  node.addEventListener("keydown", (event) => {
    if (event.target === slider) return;
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    go(at + step);
  });

  function show(cell) {
    node.hidden = false;
    say(head, `${cell.variant}, ${cell.behaviour} userspace: ${cell.property} ${cell.verdict}`);
    say(facts, [`${cell.scenario}, ${cell.vcpus} vCPU, ${cell.vmms} VMM`, cell.states ? `${count(cell.states)} states, ${count(cell.transitions ?? 0)} transitions, ${duration((cell.seconds ?? 0) * 1e9)}` : "",
      cell.fairness ? `fairness: ${cell.fairness}` : "", cell.verdict === "holds" ? "every interleaving was looked at" : "", cell.bound ?? ""].filter(Boolean).join(" · "));
    const example = cell.counterexample;
    body.hidden = !example?.steps?.length;
    replay.hidden = copied.hidden = !cell.token;
    say(replay, cell.token ? `kickstand explore --replay ${cell.token}` : "");
    URL.revokeObjectURL(address);
    address = URL.createObjectURL(new Blob([JSON.stringify(cell, null, 1)], { type: "application/json" }));
    download.href = address;
    if (!body.hidden) lay(example);
    node.scrollIntoView({ block: "nearest" });
  }

  function lay(example) {
    rows = example.steps;
    threads = example.threads;
    const from = rows.findIndex((row) => row.loop);
    const inLoop = (n) => from >= 0 && n >= from;
    put(columns, el("table", { class: "columns" }, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "#"), threads.map((name) => el("th", { scope: "col" }, name)), el("th", { scope: "col" }, "changes"))),
      el("tbody", {}, rows.map((row, n) => el("tr", { class: inLoop(n) ? "loop" : false, onclick: () => go(n) },
        el("th", { scope: "row" }, `${n + 1}${n === from ? " ↻ loop starts" : ""}`), threads.map((name) => el("td", {}, name === row.thread ? row.operation : "")), el("td", { class: "changed" }, changes(row.changed).map(([name, value]) => `${name}${value === null ? "" : ` = ${value}`}`).join(", ")))))));
    scene.lay(example);
    slider.max = String(rows.length - 1);
    go(0);
  }

  function go(step) {
    at = Math.max(0, Math.min(rows.length - 1, step));
    slider.value = String(at);
    const row = rows[at];
    say(text, `Step ${at + 1} of ${rows.length}: ${row.thread}: ${row.operation}`);
    columns.querySelectorAll("tbody tr").forEach((node, n) => {
      if (n === at) node.setAttribute("aria-current", "step");
      else node.removeAttribute("aria-current");
      node.classList.toggle("ahead", n > at);
    });
    const current = /** @type {HTMLElement|undefined} */ (columns.querySelectorAll("tbody tr")[at]);
    if (current) columns.scrollTop = current.offsetTop - columns.clientHeight / 2;
    scene.show(at);
    const state = new Map();
    for (const { changed } of rows.slice(0, at + 1)) for (const [name, value] of changes(changed)) state.set(name, value ?? "✓");
    const now = new Set(changes(row.changed).map(([name]) => name));
    put(shared, [...state].map(([name, value]) => el("div", {}, el("dt", { class: now.has(name) ? "now" : false }, name), el("dd", { class: /hole|missing|gone|absent|deleted/i.test(String(value)) ? "torn" : false }, String(value)))));
  }

  return { node, show, stop: () => URL.revokeObjectURL(address) };
}

/** What a step changed, as names and new values. @returns {[string, string][]} */
export function changes(changed) {
  return (changed ?? []).map(({ name, after }) => [name, after]);
}
