/** What a newcomer sees: the vCPUs, the semaphore, the lanes and the memory map of one VM, in one place. */

import { el, put } from "../dom.js";
import * as url from "../url.js";
import { fleet } from "./fleet.js";
import { lock } from "./lock.js";
import { memory } from "./memory.js";
import { timeline } from "./timeline.js";

const PANELS = [
  ["fleet", "vCPUs", fleet],
  ["lock", "Semaphore", lock],
  ["timeline", "Timeline", timeline],
  ["memory", "Memory map", memory],
];

export function overview(root, app) {
  const stops = [];
  put(root, PANELS.map(([name, label, show]) => {
    const body = el("div", { class: `view ${name} compact` });
    const open = el("a", { href: url.link({ view: name }), "aria-label": `Open ${label}`, onclick: (event) => {
      event.preventDefault();
      app.open(name);
    } }, "open");
    const panel = el("section", { class: `panel ${name}`, "aria-label": label }, el("div", { class: "bar" }, el("h3", {}, label), open), body);
    queueMicrotask(() => stops.push(show(body, app, { compact: true })));
    return panel;
  }));
  return () => stops.forEach((stop) => stop());
}
