/** What happened and how: the lanes, the semaphore at the same moment, and the journal. */

import { el, put } from "../../page/dom.js";
import { journal } from "./journal.js";
import { lock } from "./lock.js";
import { timeline } from "./timeline.js";

/** @type {[string, string, (root: any, app: any) => () => void][]} */
const PARTS = [["timeline", "Lanes", timeline], ["lock", "Semaphore", lock], ["journal", "Journal", journal]];

export function history(root, app) {
  const bodies = PARTS.map(([name, label, show]) => {
    const body = el("div", { class: `view ${name}` });
    const panel = el("section", { class: `panel ${name}`, id: `part-${name}`, "aria-label": label }, el("h3", {}, label), body);
    return { panel, begin: () => show(body, app) };
  });
  put(root, bodies.map(({ panel }) => panel));
  const stops = bodies.map(({ begin }) => begin());
  return () => stops.forEach((stop) => stop());
}
