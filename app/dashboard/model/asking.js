/** What can be asked of an episode: its name, its holes, how things stood at one of its events. */

import { codeOf } from "./states.js";

const READONLY = 2;

/** RAM answers at this address. */
export function covered(slots, gpa, write) {
  return slots.some((slot) => gpa >= slot.gpa && gpa < slot.gpa + slot.size && !(write && slot.flags & READONLY));
}

/** The parts of what was RAM before an episode that `slots` leave uncovered: `[from, to]` pairs. */
export function holes(episode, slots) {
  const found = [];
  for (const slot of episode.before) {
    let at = slot.gpa;
    const end = slot.gpa + slot.size;
    for (const other of slots) {
      if (other.gpa + other.size <= at || other.gpa >= end) continue;
      if (other.gpa > at) found.push([at, other.gpa]);
      at = Math.max(at, other.gpa + other.size);
    }
    if (at < end) found.push([at, end]);
  }
  return found;
}

/** Merge, split, or another change of slots. */
function changeOf({ before, changes }) {
  const more = changes.at(-1).after.length - before.length;
  return more < 0 && changes.some(({ change }) => change === "create") ? "merge" : more > 0 && changes.some(({ change }) => change === "delete") ? "split" : "slot change";
}

/** What an episode is called. */
export function title(episode) {
  const how = { kick: "inside a kick", none: "unprotected", list: "as one batch" }[episode.how] ?? "by hand";
  const inside = episode.requested !== null && !episode.transaction ? "inside a kick" : how;
  if (episode.changes.length) return `#${episode.number} ${changeOf(episode)}, ${inside}`;
  return `#${episode.number} ${episode.requested === null ? `nothing changed, ${how}` : "kick"}`;
}

/** The states of the vCPUs after the first `at` + 1 events of an episode. */
export function statesAt(vm, episode, at) {
  const states = new Uint8Array(vm.count);
  states.set(episode.states.subarray(0, vm.count));
  for (let n = 0; n <= at && n < episode.events.length; n++) {
    const { event, data } = episode.events[n];
    if (event === "vcpu_state") states[vm.index.get(data.vcpu)] = codeOf(data.state);
  }
  return states;
}

/** The slots after the first `at` + 1 events of an episode. */
export function slotsAt(episode, at) {
  const { seq } = episode.events[at].data;
  return episode.changes.filter((change) => change.seq <= seq).at(-1)?.after ?? episode.before;
}

/** How far a kick is: "none", "draining" (it waits for the write side), "open" (the window), after `at` + 1 events. */
export function phaseAt(episode, at) {
  let phase = "none";
  for (let n = 0; n <= at && n < episode.events.length; n++) {
    const { event, data } = episode.events[n];
    if (event === "kvm_kick_all") phase = { requested: "draining", completed: "open" }[data.phase] ?? "none";
    if (event === "kvm_resume_all" && data.phase === "completed") phase = "none";
  }
  return phase;
}
