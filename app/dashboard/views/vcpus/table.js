/** The fleet as a table. Pages rather than endless rows, so that a screen reader and the browser's search see it all. */

import { STATES, glyph } from "../../model/states.js";
import { el, put, say, sync } from "../../page/dom.js";
import { count, duration, plural } from "../../page/format.js";
import * as url from "../../page/url.js";
import { vcpuPanel } from "./vcpu.js";

const PAGE = 100;
const EVERY_MS = 400;

/** @type {[string, string, (vm: any, i: number, age: (since: number) => number) => any, (value: any) => string][]} */
const COLUMNS = [
  ["id", "vCPU", (vm, i) => vm.ids[i], String],
  ["state", "State", (vm, i) => vm.state[i], (code) => STATES[code].label],
  ["age", "For", (vm, i, age) => age(vm.since[i]), duration],
  ["requests", "Requests", (vm, i) => vm.requests[i].map((name) => name.replace("KVM_REQ_", "")).join(" "), (text) => text || "–"],
  ["thread", "Userspace", (vm, i) => thread(vm.threads[i]), String],
  ["runs", "Runs", (vm, i) => vm.runs[i], count],
  ["exits", "Exits", (vm, i) => vm.exits[i], count],
  ["eintr", "EINTR", (vm, i) => vm.eintr[i], count],
  ["spins", "Spins", (vm, i) => vm.spins[i], count],
  ["mmio", "MMIO", (vm, i) => vm.mmio[i], count],
  ["torn", "Holes", (vm, i) => vm.tornBy[i], count],
  ["last", "Last exit", (vm, i) => vm.lastExit[i].replace("KVM_EXIT_", ""), (text) => text || "–"],
];

function thread(thread) {
  if (!thread) return "–";
  return thread.running ? thread.behaviour : `ended: ${thread.ended}`;
}

export function table(root, app) {
  const filter = el("input", { type: "search", id: "filter", value: url.get("filter"), placeholder: "state:halted, 17, MMIO …", oninput: () => change({ filter: filter.value, page: "" }) });
  const heads = COLUMNS.map(([name, label]) => el("th", { scope: "col", class: name }, el("button", { type: "button", onclick: () => sortBy(name) }, label)));
  const body = el("tbody");
  const word = el("p", { class: "about", role: "status" });
  const back = el("button", { type: "button", class: "small", onclick: () => turn(-1) }, "Back");
  const on = el("button", { type: "button", class: "small", onclick: () => turn(1) }, "On");
  const panel = vcpuPanel(app);
  put(root,
    el("div", { class: "tools" }, el("label", { for: "filter" }, "Filter ", el("kbd", {}, "/")), filter, word, back, on),
    el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "vCPUs" },
      el("table", { class: "vcpus" }, el("caption", { class: "unseen" }, "vCPUs of the chosen VM"), el("thead", {}, el("tr", {}, heads)), body)),
    panel.node);
  let drawnAt = 0;
  let chosen = null;
  const age = (since) => app.live.age(since);

  function change(changes) {
    url.write(changes);
    draw(true);
  }

  function sortBy(name) {
    const [current, way] = url.get("sort", "id").split("-");
    change({ sort: current === name && !way ? `${name}-down` : name, page: "" });
  }

  function turn(step) {
    change({ page: Math.max(0, Number(url.get("page", "0")) + step) || "" });
  }

  function rows(vm) {
    const [name, way] = url.get("sort", "id").split("-");
    const value = (COLUMNS.find((column) => column[0] === name) ?? COLUMNS[0])[2];
    const wanted = matcher(url.get("filter"));
    const found = [];
    for (let i = 0; i < vm.count; i++) if (wanted(vm, i)) found.push([i, value(vm, i, age)]);
    found.sort((a, b) => (a[1] < b[1] ? -1 : a[1] > b[1] ? 1 : a[0] - b[0]));
    if (way) found.reverse();
    return found.map(([i]) => i);
  }

  function draw(force = false) {
    const vm = app.vm();
    if (!force && performance.now() - drawnAt < EVERY_MS) return;
    drawnAt = performance.now();
    if (!vm?.count) {
      put(body);
      say(word, "No vCPUs: create a VM with some in the panel of controls.");
      return panel.show(null, 0);
    }
    const found = rows(vm);
    const last = Math.max(0, Math.ceil(found.length / PAGE) - 1);
    const page = Math.min(Number(url.get("page", "0")) || 0, last);
    const shown = found.slice(page * PAGE, (page + 1) * PAGE);
    sync(body, shown, (i) => `${vm.id}/${vm.ids[i]}`, (i) => rowOf(vm, i), (row, i) => fillRow(row, vm, i));
    say(word, `${plural(found.length, "vCPU")}${last ? `, page ${page + 1} of ${last + 1}` : ""}`);
    back.hidden = on.hidden = !last;
    const [name, way] = url.get("sort", "id").split("-");
    heads.forEach((head, n) => head.setAttribute("aria-sort", COLUMNS[n][0] === name ? (way ? "descending" : "ascending") : "none"));
    panel.show(chosen !== null && vm.index.has(chosen) ? vm : null, vm.index.get(chosen) ?? 0);
  }

  function rowOf(vm, i) {
    const choose = el("button", { type: "button", class: "link", onclick: () => {
      chosen = vm.ids[i];
      draw(true);
    } }, String(vm.ids[i]));
    return el("tr", {}, COLUMNS.map(([name]) => (name === "id" ? el("th", { scope: "row" }, choose) : el("td", { class: name }))));
  }

  function fillRow(row, vm, i) {
    for (let n = 1; n < COLUMNS.length; n++) {
      const [name, , value, text] = COLUMNS[n];
      const node = row.children[n];
      if (name === "state") {
        if (node.code !== vm.state[i]) put(node, glyph(vm.state[i]), STATES[vm.state[i]].label);
        node.code = vm.state[i];
      } else say(node, text(value(vm, i, age)));
    }
    row.classList.toggle("torn", vm.tornBy[i] > 0);
  }

  const slow = () => draw();
  app.frame.slow.add(slow);
  draw(true);
  return () => app.frame.slow.delete(slow);
}

/** A filter: words that a row must have; `column:word` looks in one column. */
function matcher(text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return () => true;
  const tests = words.map((word) => {
    const [name, wanted] = word.includes(":") ? word.split(":", 2) : [null, word];
    const columns = COLUMNS.filter(([known]) => name === null || known === name);
    return (vm, i) => columns.some(([known, , value, show]) => {
      const cell = known === "age" ? "" : show(value(vm, i, () => NaN)).toLowerCase();
      return name === null && known === "id" ? cell === wanted : cell.includes(wanted);
    });
  });
  return (vm, i) => tests.every((test) => test(vm, i));
}
