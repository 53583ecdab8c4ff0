/**
 * The guest's memory map as rows: address goes right, time goes down. A change of slots shows the map before,
 * after each of its calls, with the holes that it leaves and the accesses that fell into them.
 */

import { holes, title } from "../model/asking.js";
import { el, put, say } from "../page/dom.js";
import { count, duration, hex, plural, size, some } from "../page/format.js";

const SHOWN = 12; // marks of torn accesses in one row
const GAP = 0.35; // width of unmapped space between slots, in shares
const RECENT = 30;

export function memory(root, app, { compact = false } = {}) {
  const now = el("div", { class: "map" });
  const chosen = el("select", { "aria-label": "Change of slots", onchange: () => (wanted = Number(chosen.value)) });
  const head = el("p", { class: "story" });
  const rows = el("div", { class: "rows" });
  const listed = el("tbody");
  const table = el("table", { class: "slots" }, el("caption", {}, "Memory slots now"),
    el("thead", {}, el("tr", {}, ["Slot", "Guest-physical", "Size", "Flags", "Host address"].map((name) => el("th", { scope: "col" }, name)))), listed);
  const empty = el("p", { class: "empty" }, "This VM has no memory slot: every access of a guest leaves as MMIO. Load a guest in the panel of controls, or PUT /vm/memory-regions/0.");
  put(root, empty, el(compact ? "h4" : "h3", { class: compact ? "unseen" : "sub" }, "Now"), now, el("div", { class: "tools" }, el("label", {}, "Change ", chosen)), head, rows, compact ? null : table);
  let wanted = 0; // an episode's number; 0: the newest
  let drawn = "";

  function tell() {
    const vm = app.vm();
    const changed = vm?.episodes.filter((episode) => episode.changes.length) ?? [];
    const picked = app.cursor?.episode.changes.length ? app.cursor.episode : changed.find(({ number }) => number === wanted) ?? changed.at(-1) ?? null;
    const key = `${vm?.id}/${vm?.version}/${vm?.slots.map((slot) => `${slot.slot}:${slot.gpa}:${slot.size}:${slot.hva}`)}/${picked?.number}/${picked?.changes.length}/${picked?.torn.length}/${picked?.end}/${app.cursor?.at}/${changed.length}`;
    if (key === drawn) return;
    drawn = key;
    empty.hidden = Boolean(vm?.slots.length || picked);
    chosen.parentElement.hidden = !changed.length;
    now.hidden = compact && picked !== null; // its last row is the same
    put(now, vm?.slots.length ? strip(scale(vm.slots, picked), vm.slots, []) : null);
    if (document.activeElement !== chosen) {
      put(chosen, changed.slice(-RECENT).reverse().map((episode) => el("option", { value: String(episode.number), selected: episode === picked }, `${title(episode)}${episode.torn.length ? `: ${plural(episode.torn.length, "hole")} seen` : ""}`)));
    }
    say(head, picked ? verdict(picked) : vm?.slots.length ? "No slot has changed. Merge m1 and m2 to see what a vCPU sees meanwhile." : "");
    head.className = `story ${picked?.torn.length ? "torn" : ""}`;
    put(rows, picked ? history(vm, picked) : null);
    put(listed, (vm?.slots ?? []).map((slot) => el("tr", {}, el("th", { scope: "row" }, String(slot.slot)), el("td", {}, `${hex(slot.gpa)} – ${hex(slot.gpa + slot.size - 1)}`), el("td", {}, size(slot.size)), el("td", {}, flags(slot.flags)), el("td", {}, slot.hva === null ? "–" : hex(slot.hva)))));
  }

  /** The map before, and after each change until the cursor. */
  function history(vm, episode) {
    const columns = scale(vm.slots, episode);
    const until = app.cursor?.episode === episode ? app.cursor.record.data.seq : Infinity;
    const states = [{ label: "before", slots: episode.before, t: null, step: 0, seq: -1 }, ...episode.changes.map((change, n) => ({
      label: `${change.change.toUpperCase()} ${change.slot}`, slots: change.after, t: change.t, step: n + 1, seq: change.seq,
    }))];
    const current = states.findLastIndex(({ seq }) => seq <= until);
    return states.map((state, n) => {
      const torn = episode.torn.filter((access) => access.step === state.step && access.seq <= until);
      const open = holes(episode, state.slots);
      const row = el("div", { class: `row${n > current ? " ahead" : ""}${until < Infinity && n === current ? " current" : ""}` },
        el("span", { class: "label" }, el("b", {}, state.label), el("small", {}, state.t === null ? "" : `+${duration(state.t - episode.start)}`)),
        strip(columns, state.slots, open, torn));
      if (torn.length) row.append(el("p", { class: "torn" }, compact ? `${plural(torn.length, "hole")} seen here` : tornText(torn)));
      return row;
    });
  }

  app.frame.slow.add(tell);
  tell();
  return () => app.frame.slow.delete(tell);
}

/** Every boundary of a slot, before or after, with its share of the width: equal parts, and narrow ones where nothing ever is. */
export function scale(slots, episode) {
  const all = [...slots, ...(episode?.before ?? []), ...(episode?.changes.flatMap((change) => change.after) ?? [])];
  const edges = [...new Set(all.flatMap((slot) => [slot.gpa, slot.gpa + slot.size]))].sort((a, b) => a - b);
  const columns = [];
  let at = 0;
  for (let n = 0; n + 1 < edges.length; n++) {
    const used = all.some((slot) => slot.gpa <= edges[n] && slot.gpa + slot.size > edges[n]);
    const wide = used ? 1 + Math.log2(Math.max(1, (edges[n + 1] - edges[n]) / 4096)) / 6 : GAP;
    columns.push({ from: edges[n], to: edges[n + 1], at, wide, used });
    at += wide;
  }
  return { columns, whole: at || 1 };
}

/** One state of the map. */
export function strip({ columns, whole }, slots, open, torn = []) {
  const place = (gpa) => {
    const column = columns.find(({ from, to }) => gpa >= from && gpa < to) ?? columns.at(-1);
    if (!column) return 0;
    return (column.at + (Math.min(1, (gpa - column.from) / (column.to - column.from)) * column.wide)) / whole;
  };
  const end = (gpa) => {
    const column = columns.find(({ to }) => to === gpa);
    return column ? (column.at + column.wide) / whole : place(gpa);
  };
  const node = el("div", { class: "strip", role: "img", "aria-label": described(slots, open, torn) });
  const box = (from, to, kind, ...text) => node.append(el("div", { class: kind, style: { left: `${place(from) * 100}%`, width: `${(end(to) - place(from)) * 100}%` } }, text));
  for (const { from, to, used } of columns) if (!used) box(from, to, "nothing", el("span", {}, "⋯"));
  for (const slot of slots) box(slot.gpa, slot.gpa + slot.size, `slot slot${slot.slot % 4}${slot.flags & 2 ? " readonly" : ""}`, el("b", {}, `slot ${slot.slot}`), el("small", {}, hex(slot.gpa), el("span", {}, ` · ${size(slot.size)}`)));
  for (const [from, to] of open) box(from, to, "hole", el("b", {}, "hole"));
  const marked = new Map();
  for (const { gpa } of torn) if (gpa !== null) marked.set(gpa, (marked.get(gpa) ?? 0) + 1);
  for (const [gpa, times] of [...marked].slice(0, SHOWN)) {
    node.append(el("span", { class: "mark", style: { left: `${((place(gpa) + end(columns.find(({ from, to }) => gpa >= from && gpa < to)?.to ?? gpa)) / 2) * 100}%` } }, `✕ ${count(times)}`));
  }
  return node;
}

function described(slots, open, torn) {
  const names = slots.map((slot) => `slot ${slot.slot} at ${hex(slot.gpa)}, ${size(slot.size)}`);
  const gaps = open.map(([from, to]) => `a hole from ${hex(from)} to ${hex(to - 1)}`);
  return [...names, ...gaps, torn.length ? `${plural(torn.length, "access", "accesses")} of it` : ""].filter(Boolean).join("; ") || "no memory";
}

function tornText(torn) {
  const [first] = torn;
  const who = some([...new Set(torn.map(({ vcpu }) => `vCPU ${vcpu}`))]);
  if (first.gpa === null) return `${who} could not fetch its code: KVM_EXIT_INTERNAL_ERROR.`;
  return `${who} ${first.write ? "wrote" : "read"} ${hex(first.gpa)} ${torn.length > 1 ? `${count(torn.length)} times ` : ""}and left with KVM_EXIT_MMIO, although the address is RAM before and after.`;
}

function verdict(episode) {
  const spent = duration((episode.end ?? episode.changes.at(-1).t) - episode.start);
  const what = `${title(episode)} took ${spent}`;
  if (episode.torn.length) return `${what}: ${plural(episode.torn.length, "access", "accesses")} fell into a hole that nobody should ever see.`;
  return episode.end === null ? `${what} so far.` : `${what}: nobody saw a hole.`;
}

function flags(bits) {
  const names = [bits & 1 ? "LOG_DIRTY_PAGES" : "", bits & 2 ? "READONLY" : ""].filter(Boolean);
  return names.join(" ") || "–";
}
