/** Who holds the semaphore, who waits, and who keeps whom waiting: now, or at the step the timeline is at. */

import { phaseAt, statesAt } from "../../model/asking.js";
import { STATES, WAITING, glyph, inside } from "../../model/states.js";
import { el, put, say, svg, sync } from "../../page/dom.js";
import { duration, plural, some } from "../../page/format.js";

const CHIPS = 24;
const POLL_MS = 400;
const BARE = new Set(["none", "signal", "srcu", "accel_blocker", "region_list"]);

export function lock(root, app, { compact = false } = {}) {
  const when = el("p", { class: "about" });
  const story = el("p", { class: "story", "aria-live": "off" });
  const holders = el("ul", { class: "chips", "aria-label": "Inside KVM_RUN" });
  const writer = el("ul", { class: "chips", "aria-label": "Writer" });
  const queue = el("ol", { class: "queue", "aria-label": "Queue" });
  const edges = svg("svg", { class: "edges", "aria-hidden": "true" });
  const heading = compact ? "h4" : "h3";
  const held = el(heading, { class: "sub" });
  const waits = el(heading, { class: "sub" });
  const scene = el("div", { class: "scene" },
    el("div", { class: "side" }, waits, queue), edges,
    el("div", { class: "side" }, held, holders), el("div", { class: "side" }, el(heading, { class: "sub" }, "Write side"), writer));
  const try_ = compact ? null : el("details", {}, el("summary", {}, "How to see a queue that lasts"),
    el("p", {}, "A kick usually drains in less than a millisecond. With the variant global_rwsem all VMs share one semaphore, as in the patch as posted: a kick of one VM waits for the vCPUs of every other. ",
      "Create two VMs with it, start the threads of one with a guest that only reads, and kick the other: the kick hangs until it times out after two seconds."));
  put(root, when, story, scene, try_);
  let polled = null;
  let stopped = false;

  /** What there is to draw: indices of vCPUs, and entries of the queue. */
  function gather(vm) {
    const cursor = app.cursor;
    const states = cursor ? statesAt(vm, cursor.episode, cursor.at) : vm.state.subarray(0, vm.count);
    const phase = cursor ? phaseAt(cursor.episode, cursor.at) : !vm.kicked ? "none" : vm.open && vm.open.completed === null ? "draining" : "open";
    const holding = [];
    const waiting = [];
    states.forEach((code, i) => (inside(code) ? holding.push(i) : code === WAITING && waiting.push(i)));
    const wanted = phase === "draining" ? [{ who: "the kick", side: "write" }] : [];
    let entries = [...wanted, ...waiting.map((i) => ({ who: vm.ids[i], side: "read", i }))].map((entry) => ({ age: null, ...entry }));
    if (!cursor && polled?.vm === vm.id && polled.queue.length) {
      entries = polled.queue.map(({ who, side, age_ns: age }) => ({ who: typeof who === "number" ? who : "the kick", side, age, i: vm.index.get(who) }));
    }
    return { states, phase, holding, entries, writer: cursor ? null : polled?.vm === vm.id ? polled.writer : null };
  }

  function tell() {
    const vm = app.vm();
    scene.hidden = !vm?.count;
    if (!vm?.count) {
      say(when, "");
      return say(story, "No vCPU, so nobody holds or wants the semaphore.");
    }
    const { states, phase, holding, entries, writer: writing } = gather(vm);
    when.hidden = Boolean(app.cursor) && !compact;
    say(when, app.cursor ? `at ${duration(app.cursor.record.data.t_ns - app.cursor.episode.start)} of #${app.cursor.episode.number}` : "now");
    const bare = BARE.has(vm.variant) ? `The variant ${vm.variant} has no semaphore: these are the vCPUs inside KVM_RUN. ` : "";
    say(story, bare + sentence(vm, phase, holding, entries));
    say(held, `Read side: ${plural(holding.length, "vCPU")}`);
    say(waits, entries.length ? `Queue: ${entries.length}` : "Queue");
    const oldest = app.cursor ? null : holding.reduce((old, i) => (old === null || vm.since[i] < vm.since[old] ? i : old), null);
    chips(vm, states, holding, oldest);
    sync(queue, entries.slice(0, CHIPS), ({ who }) => String(who), () => el("li"), (node, entry) => say(node, queueText(entry)));
    put(writer, writing ? el("li", { class: "chip" }, String(writing)) : el("li", { class: "none" }, { open: "given back: the request bits keep vCPUs out", draining: "not to be had yet" }[phase] ?? "free"));
    draw(holding, entries);
  }

  function chips(vm, states, holding, oldest) {
    sync(holders, holding.slice(0, CHIPS).map((i) => ({ i, code: states[i] })), ({ i, code }) => `${i}/${code}`,
      ({ i, code }) => el("li", { class: `chip ${STATES[code].name}` }, glyph(code), el("span", {}, `vCPU ${vm.ids[i]}`), el("small", {})),
      (node, { i, code }) => {
        const since = app.live.age(vm.since[i]);
        const age = app.cursor || Number.isNaN(since) ? "" : ` ${duration(since)}`;
        say(node.lastChild, STATES[code].label + (i === oldest ? `${age}, longest` : age));
        node.classList.toggle("longest", i === oldest);
      });
    if (holding.length > CHIPS) holders.append(el("li", { class: "none" }, `and ${holding.length - CHIPS} more`));
    if (!holding.length) holders.append(el("li", { class: "none" }, "nobody"));
    for (const node of [...holders.children]) if (node.className === "none" && holding.length && holding.length <= CHIPS) node.remove();
  }

  /** A line from each that waits to what keeps it waiting: the first to the holders, the others to the one before. */
  function draw(holding, entries) {
    edges.replaceChildren();
    if (!entries.length || compact) return;
    const box = edges.getBoundingClientRect();
    edges.setAttribute("viewBox", `0 0 ${Math.max(1, box.width)} ${Math.max(1, box.height)}`);
    const middle = (node) => {
      const { top, height } = node.getBoundingClientRect();
      return top + height / 2 - box.top;
    };
    const first = queue.children[0];
    if (!first) return;
    const writers = entries[0].side === "write";
    for (const chip of [...holders.children].slice(0, writers ? holding.length : 0)) {
      edges.append(svg("path", { d: `M0 ${middle(first)} C${box.width / 2} ${middle(first)} ${box.width / 2} ${middle(chip)} ${box.width} ${middle(chip)}` }));
    }
    for (const node of [...queue.children].slice(1)) {
      edges.append(svg("path", { class: "behind", d: `M0 ${middle(node)} q28 0 28 ${(middle(first) - middle(node)) / 2} t-28 ${(middle(first) - middle(node)) / 2}` }));
    }
  }

  async function poll() {
    const vm = app.vm();
    if (vm && !document.hidden && !app.cursor) {
      const found = await app.live.read(vm.id, "/locks");
      polled = found && { vm: vm.id, ...found };
    }
    if (!stopped) setTimeout(() => void poll(), POLL_MS);
  }

  app.frame.slow.add(tell);
  void poll();
  return () => {
    app.frame.slow.delete(tell);
    stopped = true;
  };
}

function queueText({ who, side, age }) {
  const name = typeof who === "number" ? `vCPU ${who}` : who;
  return `${name} wants the ${side} side${age === null ? "" : `, waits ${duration(age)}`}`;
}

/** The scene in words. */
function sentence(vm, phase, holding, entries) {
  const names = some(holding.map((i) => `vCPU ${vm.ids[i]}`));
  const behind = entries.filter(({ side }) => side === "read").map(({ who }) => `vCPU ${who}`);
  if (entries.some(({ side }) => side === "write")) {
    const others = holding.length ? names : "vCPUs of another VM";
    return `The kick waits for the write side: ${others} ${holding.length === 1 ? "is" : "are"} still inside KVM_RUN.${behind.length ? ` ${some(behind)} ${behind.length === 1 ? "queues" : "queue"} behind it.` : ""}`;
  }
  if (phase === "open") return holding.length ? `The window is open, yet ${names} ${holding.length === 1 ? "is" : "are"} inside: looking at its request bit, or let in by the variant.` : "The window is open: nobody is inside KVM_RUN, and the request bits keep everybody out.";
  if (!holding.length) return "Nobody is inside KVM_RUN.";
  return `${names} ${holding.length === 1 ? "is" : "are"} inside KVM_RUN; nobody wants the write side.`;
}
