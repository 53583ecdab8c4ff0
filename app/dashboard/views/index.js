/** The views, in the order of their links. Each is loaded when it is first wanted, and gives
 * `show(root, app)`, which fills an element and returns how to stop. */

export const VIEWS = [
  { name: "overview", label: "Overview", lead: "", load: async () => (await import("./overview.js")).overview },
  { name: "fleet", label: "Fleet", lead: "Every vCPU of the VM and what it does now. A dot in the corner: a kick is pending for it.", load: async () => (await import("./fleet.js")).fleet },
  { name: "table", label: "Table", lead: "The fleet as a table: the same facts, for reading, sorting and filtering.", load: async () => (await import("./table.js")).table },
  { name: "lock", label: "Semaphore", lead: "KVM_RUN holds the read side of mem_transaction; a kick takes the write side, which it gets when nobody is inside.", load: async () => (await import("./lock.js")).lock },
  { name: "timeline", label: "Timeline", lead: "One lane for each vCPU. Bands show what a kick is doing; choose one and go through it step by step.", load: async () => (await import("./timeline.js")).timeline },
  { name: "memory", label: "Memory", lead: "What the guest sees as RAM, before, during and after a change of slots. Reads that fell into a hole are red.", load: async () => (await import("./memory.js")).memory },
  { name: "explorer", label: "Explorer", lead: "Every interleaving of a scenario, for each variant: which property holds, and the shortest story where it does not.", load: async () => (await import("./explorer.js")).explorer },
  { name: "journal", label: "Journal", lead: "What happened, newest first.", load: async () => (await import("./journal.js")).journal },
  { name: "warnings", label: "Warnings", lead: "What looks wrong, and where to look.", load: async () => (await import("./warnings.js")).warnings },
];
