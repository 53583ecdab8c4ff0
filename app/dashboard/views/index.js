/** The views, in the order of their links. `show(root, app)` fills an element and returns how to stop. */

import { explorer } from "./explorer.js";
import { fleet } from "./fleet.js";
import { journal } from "./journal.js";
import { lock } from "./lock.js";
import { memory } from "./memory.js";
import { overview } from "./overview.js";
import { table } from "./table.js";
import { timeline } from "./timeline.js";
import { warnings } from "./warnings.js";

export const VIEWS = [
  { name: "overview", label: "Overview", lead: "", show: overview },
  { name: "fleet", label: "Fleet", lead: "Every vCPU of the VM and what it does now. A dot in the corner: a kick is pending for it.", show: fleet },
  { name: "table", label: "Table", lead: "The fleet as a table: the same facts, for reading, sorting and filtering.", show: table },
  { name: "lock", label: "Semaphore", lead: "KVM_RUN holds the read side of mem_transaction; a kick takes the write side, which it gets when nobody is inside.", show: lock },
  { name: "timeline", label: "Timeline", lead: "One lane for each vCPU. Bands show what a kick is doing; choose one and go through it step by step.", show: timeline },
  { name: "memory", label: "Memory", lead: "What the guest sees as RAM, before, during and after a change of slots. Reads that fell into a hole are red.", show: memory },
  { name: "explorer", label: "Explorer", lead: "Every interleaving of a scenario, for each variant: which property holds, and the shortest story where it does not.", show: explorer },
  { name: "journal", label: "Journal", lead: "What happened, newest first.", show: journal },
  { name: "warnings", label: "Warnings", lead: "What looks wrong, and where to look.", show: warnings },
];
