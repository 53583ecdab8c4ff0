/** The views, in the order of their links. */

import "./overview.js"; // the first that is wanted; the others are loaded when they are

/** A view's `show(root, app)`, which fills an element and returns how to stop. */
export async function load({ name, file = name }) {
  return (await import(`./${file}.js`))[file.split("/").at(-1)];
}

/** @type {{name: string, label: string, lead: string, file?: string}[]} */
export const VIEWS = [
  { name: "overview", label: "Overview", lead: "" },
  { name: "vcpus", label: "vCPUs", lead: "Every vCPU of the VM and what it does now. A dot in the corner: a kick is pending for it.", file: "vcpus/vcpus" },
  { name: "timeline", label: "Timeline", lead: "What happened: one lane for each vCPU, bands for kicks. Choose one and go through it step by step; the semaphore goes along.", file: "timeline/history" },
  { name: "memory", label: "Memory", lead: "What the guest sees as RAM, before, during and after a change of slots. Accesses that fell into a hole are red." },
  { name: "explorer", label: "Explorer", lead: "Every interleaving of a scenario, for each variant: which property holds, and the shortest story where it does not.", file: "explorer/explorer" },
];

/** Behind the badge in the header. */
export const WARNINGS = { name: "warnings", label: "Warnings", lead: "What looks wrong, and where to look." };

/** Where views went that had a link of their own. @type {Record<string, Record<string, string>>} */
export const MOVED = { fleet: { view: "vcpus" }, table: { view: "vcpus", as: "table" }, lock: { view: "timeline" }, journal: { view: "timeline" } };

/** The view of a name; undefined if there is none. */
export function viewOf(name) {
  return [...VIEWS, WARNINGS].find((view) => view.name === name);
}
