/** What a newcomer sees: vCPUs and the memory map side by side, what was seen of holes, the semaphore, the lanes. */

import { el, put, say } from "../page/dom.js";
import { count, plural } from "../page/format.js";
import * as url from "../page/url.js";
import { memory } from "./memory.js";
import { lock } from "./timeline/lock.js";
import { timeline } from "./timeline/timeline.js";
import { fleet } from "./vcpus/fleet.js";

/** @type {[string, string, (root: any, app: any, how: any) => () => void, string][]} */
const PANELS = [
  ["fleet", "vCPUs", fleet, "vcpus"],
  ["memory", "Memory map", memory, "memory"],
  ["timeline", "Timeline", timeline, "timeline"],
  ["lock", "Semaphore", lock, "timeline"],
];

export function overview(root, app) {
  const stops = [];
  const board = scoreboard(app);
  put(root, board.node, PANELS.map(([name, label, show, view]) => {
    const body = el("div", { class: `view ${name} compact` });
    const open = el("a", { href: url.link({ view }), "aria-label": `Open ${label}`, onclick: (event) => {
      event.preventDefault();
      app.open(view);
    } }, "open");
    const panel = el("section", { class: `panel ${name}`, "aria-label": label }, el("div", { class: "bar" }, el("h3", {}, label), open), body);
    queueMicrotask(() => stops.push(show(body, app, { compact: true })));
    return panel;
  }));
  return () => [board.stop, ...stops].forEach((stop) => stop());
}

/** Race and cure in two numbers. */
function scoreboard(app) {
  const open = el("b", { class: "number" });
  const kick = el("b", { class: "number" });
  const without = el("span", {});
  const within = el("span", {});
  const since = el("span", { class: "about" });
  const spin = el("span", { class: "spin" });
  const polite = el("button", { type: "button", class: "small", id: "behave", onclick: () => void app.runner.behave("well") }, "Let it wait for the resume");
  const node = el("section", { class: "board", "aria-label": "Holes seen" }, el("h3", {}, "Holes seen"), el("p", {}, open, without), el("p", {}, kick, within), since, el("p", { class: "price" }, spin, polite));
  let before = { vm: null, at: 0, eintr: 0 };
  let rate = 0;

  function tell() {
    const vm = app.vm();
    node.hidden = !vm;
    if (!vm) return;
    const { score } = vm;
    say(open, count(score.open.holes));
    say(without, ` unprotected, in ${plural(score.open.changes, "change")}`);
    say(kick, count(score.kick.holes));
    say(within, ` inside kicks, in ${plural(score.kick.changes, "change")}`);
    open.classList.toggle("torn", score.open.holes > 0);
    kick.classList.toggle("good", score.kick.changes > 0 && !score.kick.holes);
    kick.classList.toggle("torn", score.kick.holes > 0);
    say(since, sinceWhen(vm.oldest));
    price(vm);
  }

  /** Careless userspace that is kept out calls KVM_RUN again and again. */
  function price(vm) {
    const now = performance.now();
    if (before.vm !== vm) before = { vm, at: now, eintr: vm.total("eintr") };
    if (now - before.at > 900) {
      rate = ((vm.total("eintr") - before.eintr) / (now - before.at)) * 1000;
      before = { vm, at: now, eintr: vm.total("eintr") };
    }
    const spins = vm.kicked && rate > 50;
    spin.parentElement.hidden = !spins;
    if (spins) say(spin, `userspace spins: ${count(rate)} EINTR/s, the price of ${vm.variant} with careless userspace. `);
  }

  app.frame.slow.add(tell);
  tell();
  return { node, stop: () => app.frame.slow.delete(tell) };
}

/** From when on holes are counted, if that is not the beginning. */
function sinceWhen(oldest) {
  if (oldest === Infinity) return "counted from when this page was opened on: what was before could not be had";
  return oldest > 1 ? `counted from event ${count(oldest)} on: the server keeps no older ones` : "";
}
