/** The journal, three ways: what it amounted to, when it was, and every event. */

import { calls } from "../../live/api.js";
import { copy, curl, curlOf } from "../../live/curl.js";
import { title } from "../../model/asking.js";
import { sentence } from "../../model/explain.js";
import { el, put, say, sync } from "../../page/dom.js";
import { count, duration, plural } from "../../page/format.js";
import * as url from "../../page/url.js";

const ROWS = 150;
const LOOKED = 3000;
const WAYS = [["compact", "Compact"], ["timeline", "Timeline"], ["full", "Full"]];
const EVERY_MS = 400;
/** The call behind an event, for "copy as curl"; other events are copied as the stream from that point. */
const CALLS = new Map([["kvm_kick_all", /\/kick$/], ["kvm_resume_all", /\/resume$/], ["mem_transaction", /memory-transaction$/], ["kvm_memslot", /memory-(transaction|regions)/], ["kvm_create_vm", /^\/vms$/], ["kvm_destroy_vm", /^\/vms?\/?[^/]*$/]]);

export function journal(root, app) {
  const filter = el("input", { type: "search", id: "journal-filter", value: url.get("find"), placeholder: "kick, vcpu:2, hole …", oninput: () => url.write({ find: filter.value }) });
  const ways = WAYS.map(([name, label]) => el("button", { type: "button", class: "small", "data-way": name, onclick: () => url.write({ journal: name }) }, label));
  const hold = el("button", { type: "button", class: "small", "aria-pressed": "false", onclick: () => (held = !held) }, "Hold");
  const word = el("p", { class: "about", role: "status" });
  const list = el("ol", { class: "events", tabindex: 0, "aria-label": "Events, newest first" });
  const all = el("input", { type: "checkbox" });
  put(root, el("div", { class: "tools" }, el("span", { class: "choice", role: "group", "aria-label": "How" }, ways), el("label", { for: "journal-filter" }, "Filter ", el("kbd", {}, "/")), filter, el("label", { class: "check" }, all, "all VMs"), hold, word), list);
  let held = false;
  let drawnAt = 0;

  function draw() {
    if (performance.now() - drawnAt < EVERY_MS) return;
    drawnAt = performance.now();
    const way = url.get("journal", "compact");
    for (const button of ways) button.setAttribute("aria-pressed", String(button.getAttribute("data-way") === way));
    hold.setAttribute("aria-pressed", String(held));
    say(hold, held ? "Go on" : "Hold");
    if (held) return;
    const rows = (way === "full" ? full : way === "timeline" ? spans : compactRows)(app, all.checked ? null : app.vm()?.id, found(filter.value));
    list.className = `events ${way}`;
    sync(list, rows.slice(0, ROWS), ({ key }) => key, (row) => rowOf(app, row, way), (node, row) => {
      say(node.querySelector(".text"), row.text + (row.times > 1 ? ` × ${count(row.times)}` : ""));
    });
    const empty = app.store.journal.total ? "nothing matches" : "nothing has happened: kick, or start userspace";
    say(word, rows.length ? `${plural(rows.length, "entry", "entries")}${rows.length > ROWS ? `, the newest ${ROWS} shown` : ""}; ${plural(app.store.events, "event")} seen` : empty);
  }

  app.frame.slow.add(draw);
  return () => app.frame.slow.delete(draw);
}

function rowOf(app, row, way) {
  const button = el("button", { type: "button", class: "small", "aria-label": `Copy as curl: ${row.text.slice(0, 60)}`, onclick: async () => {
    const text = command(app, row);
    say(button, (await copy(text)) ? "Copied" : text);
    setTimeout(() => say(button, "curl"), 1500);
  } }, "curl");
  const bar = way === "timeline" ? el("span", { class: "bar", "aria-hidden": "true" }, el("span", { style: { marginLeft: `${row.from * 100}%`, width: `${Math.max(0.5, row.wide * 100)}%` } })) : null;
  return el("li", { class: row.torn ? "torn" : false }, el("time", {}, row.when), bar, el("span", { class: "text" }), button);
}

/** The command that did it, if this page knows it; else the stream from there. */
function command(app, { record }) {
  const pattern = CALLS.get(record.event);
  const call = pattern && calls.findLast(({ request }) => pattern.test(request.path) && request.path.includes(record.data.vm === "default" ? "/vm" : record.data.vm));
  return call ? curl(call.request) : curlOf(app.store.epoch, record.data.seq);
}

/** A filter over a record: words in its JSON; `vcpu:2` and the like look at one member. */
function found(text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return () => true;
  return ({ event, data }, torn = false) => {
    const whole = `${event} ${JSON.stringify(data)} ${torn ? "hole" : ""}`.toLowerCase();
    return words.every((word) => {
      const [name, wanted] = word.split(":");
      return wanted === undefined ? whole.includes(word) : String(data[name]).toLowerCase() === wanted;
    });
  };
}

function newest(app, vm, test) {
  const records = [];
  let looked = 0;
  app.store.journal.back((record) => {
    if ((vm === null || record.data.vm === vm) && test(record)) records.push(record);
    return ++looked < LOOKED;
  });
  if (records.length === 0 || looked >= LOOKED || looked >= app.store.journal.size) older(app, vm, test, records);
  return records;
}

/** What concerned whole VMs before the newest events; a vCPU that spins would have driven it out. */
function older(app, vm, test, records) {
  const oldest = records.at(-1)?.data.seq ?? Infinity;
  app.store.notable.back((record) => {
    if (record.data.seq < oldest && (vm === null || record.data.vm === vm) && test(record)) records.push(record);
  });
}

function stamp(app, t) {
  const age = app.live.age(t);
  return Number.isNaN(age) ? "" : `−${duration(age)}`;
}

function full(app, vm, test) {
  return newest(app, vm, test).map((record) => {
    const { seq, vm: _vm, vcpu, t_ns: t, ...rest } = record.data;
    return { key: seq, record, times: 1, torn: false, when: `${(t / 1e9).toFixed(6)} s`, text: `${seq} ${record.event}${vcpu === null ? "" : ` vcpu=${vcpu}`} ${Object.entries(rest).map(([name, value]) => `${name}=${typeof value === "object" ? JSON.stringify(value) : value}`).join(" ")}` };
  });
}

/** What a vCPU does all the time. */
const STEPS = new Set(["vcpu_state", "kvm_mode", "kvm_entry", "kvm_exit", "kvm_pio"]);

/** What it amounted to: sentences, and what repeats at once is one line. */
function compactRows(app, vm, test) {
  const rows = [];
  const again = new Map();
  for (const record of newest(app, vm, test)) {
    const { event, data } = record;
    if (STEPS.has(event)) continue;
    const text = sentence(record, { completed: data.t_ns, requested: NaN }) ?? `${event}${data.vcpu === null ? "" : ` of vCPU ${data.vcpu}`}`;
    const line = text.replace(/ after –/, "");
    const same = again.get(line);
    if (same && data.vcpu !== null) {
      same.times += 1;
      continue;
    }
    if (data.vcpu === null) again.clear();
    const row = { key: `${data.seq}/${line}`, record, times: 1, torn: event === "kvm_mmio", when: stamp(app, data.t_ns), text: line };
    again.set(line, row);
    rows.push(row);
  }
  return rows;
}

/** Kicks and changes of slots, with their place in the time that is kept. */
function spans(app, vm, test) {
  const episodes = [...app.store.vms.values()].filter(({ id }) => vm === null || id === vm).flatMap((machine) => machine.episodes.map((episode) => ({ machine, episode })));
  const shown = episodes.filter(({ episode }) => episode.events.length && test(episode.events[0], episode.torn.length > 0));
  const start = Math.min(...shown.map(({ episode }) => episode.start));
  const whole = Math.max(1, app.live.now - start);
  return shown.sort((a, b) => b.episode.start - a.episode.start).map(({ machine, episode }) => {
    const end = episode.resumed ?? episode.end ?? app.live.now;
    const drain = episode.completed !== null && episode.requested !== null ? `, drained in ${duration(episode.completed - episode.requested)}` : "";
    return {
      key: `${machine.id}/${episode.number}/${episode.end}/${episode.torn.length}`, record: episode.events[0], times: 1, torn: episode.torn.length > 0, when: stamp(app, episode.start),
      text: `${machine.id} ${title(episode)}: ${duration(end - episode.start)}${drain}${episode.torn.length ? `, ${plural(episode.torn.length, "hole")} seen` : ""}`,
      from: (episode.start - start) / whole, wide: (end - episode.start) / whole,
    };
  });
}
