/** The views, in the order of their links. */

import "./overview.js"; // the first that is wanted; the others are loaded when they are

/** A view's `show(root, app)`, which fills an element and returns how to stop. */
export async function load(name) {
  return (await import(`./${name}.js`))[name];
}

export const VIEWS = [
  { name: "overview", label: "Overview", lead: "" },
  { name: "fleet", label: "Fleet", lead: "Every vCPU of the VM and what it does now. A dot in the corner: a kick is pending for it." },
  { name: "table", label: "Table", lead: "The fleet as a table: the same facts, for reading, sorting and filtering." },
  { name: "lock", label: "Semaphore", lead: "KVM_RUN holds the read side of mem_transaction; a kick takes the write side, which it gets when nobody is inside." },
  { name: "timeline", label: "Timeline", lead: "One lane for each vCPU. Bands show what a kick is doing; choose one and go through it step by step." },
  { name: "memory", label: "Memory", lead: "What the guest sees as RAM, before, during and after a change of slots. Reads that fell into a hole are red." },
  { name: "explorer", label: "Explorer", lead: "Every interleaving of a scenario, for each variant: which property holds, and the shortest story where it does not." },
  { name: "journal", label: "Journal", lead: "What happened, newest first." },
  { name: "warnings", label: "Warnings", lead: "What looks wrong, and where to look." },
];
