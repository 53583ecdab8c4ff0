/** The states of a vCPU: names, what they mean, and one glyph each, the same on canvas and in text. */

import { svg } from "../page/dom.js";

/** @typedef {{name: string, label: string, meaning: string, path: string}} State */

/** In the order in which KVM_RUN goes through them. `path` is drawn in a 24 by 24 box. @type {State[]} */
export const STATES = [
  { name: "user", label: "user", meaning: "outside KVM_RUN: its thread is in userspace", path: "M12 5a7 7 0 1 0 .01 0zM12 8.4a3.6 3.6 0 1 1-.01 0z" },
  { name: "waiting", label: "waiting", meaning: "in KVM_RUN, queued for the semaphore (down_read)", path: "M6 4h12v2.5L13.4 12l4.6 5.5V20H6v-2.5l4.6-5.5L6 6.5z" },
  { name: "kernel", label: "kernel", meaning: "in KVM_RUN, holding the semaphore, not in the guest", path: "M12 3.5 20.5 12 12 20.5 3.5 12z" },
  { name: "guest", label: "guest", meaning: "executing guest code", path: "M6.5 4v16L20 12z" },
  { name: "exiting", label: "exiting", meaning: "kicked out of guest mode, on its way to userspace", path: "M11 4v4.5h9v7h-9V20L3.5 12z" },
  { name: "halted", label: "halted", meaning: "asleep inside KVM_RUN after HLT, until an interrupt", path: "M15 3.5A9 9 0 1 0 20.5 15 7.5 7.5 0 0 1 15 3.5z" },
  { name: "blocked", label: "blocked", meaning: "asleep inside KVM_RUN: no INIT or SIPI yet, a page, a hold", path: "M5 5h14v14H5z" },
];
const USER = 0;
export const WAITING = 1;
export const HALTED = 5;
const CODES = new Map(STATES.map((state, code) => [state.name, code]));
/** What Path2D needs, made on first use: the reducer must work where there is no canvas. @type {Path2D[]} */
let paths = [];

/** The number of a state's name; an unknown one counts as in the kernel. */
export function codeOf(name) {
  return CODES.get(name) ?? 2;
}

/** The state keeps the semaphore's read side. */
export function inside(code) {
  return code !== USER && code !== WAITING;
}

/** Each state's glyph for a canvas. */
export function glyphs() {
  if (!paths.length) paths = STATES.map((state) => new Path2D(state.path));
  return paths;
}

/** A state's glyph in the page; its name is beside it, so it is hidden from readers. */
export function glyph(code) {
  return svg("svg", { class: `glyph ${STATES[code].name}`, viewBox: "0 0 24 24", "aria-hidden": "true" },
    svg("path", { d: STATES[code].path }));
}

/** @returns {{[name: string]: string}} the colours of the page, for canvases */
export function palette() {
  const style = getComputedStyle(document.documentElement);
  const names = ["back", "panel", "ink", "soft", "line", "torn", "drain", "closed", "accent", "on-state", "on-dark"];
  const found = Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
  for (const state of STATES) found[state.name] = style.getPropertyValue(`--${state.name}`).trim();
  return found;
}
