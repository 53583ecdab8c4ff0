/** A counterexample as timeline and memory map know a VM: what the replay on the shipped runtime told, step by step. */

import { covered } from "../../model/asking.js";
import { slotOf } from "../../model/vm.js";

const PHASES = { requested: "draining", completed: "open" };

/**
 * @typedef {import("../../model/vm.js").Slot} Slot
 * @typedef {{id: string, vcpus: number[], states: Map<number, string[]>, phases: string[], slots: Slot[][], torn: any[]}} Moments
 *   lists by the number of steps that are done; `torn`: accesses of what was RAM, with their step
 */

/** @returns {Moments[]} one for each VM; none if the server did not tell */
export function momentsOf({ vms = [], events = [], steps }) {
  return vms.map(({ id, vcpus }) => {
    const own = events.filter(({ vm }) => vm === id);
    const slots = track(steps.length, own, [], "memory_regions", ({ memory_regions: regions }) => regions.map(slotOf));
    const accesses = own.filter(({ event, gpa, type }) => event === "kvm_mmio" && covered(slots[0], Number(gpa), type === "write"));
    return {
      id, vcpus, slots,
      states: new Map(vcpus.map((vcpu) => [vcpu, track(steps.length, own.filter((event) => event.vcpu === vcpu), "user", "vcpu_state", ({ state }) => state)])),
      phases: track(steps.length, own, "none", /^kvm_(kick|resume)_all$/, ({ event, phase }) => (event === "kvm_kick_all" && PHASES[phase]) || "none"),
      torn: accesses.map(({ step, gpa }) => ({ step, gpa: Number(gpa) })),
    };
  });
}

/** The value after each number of steps, as events change it. */
function track(steps, events, first, name, value) {
  const named = events.filter(({ event }) => event === name || (name instanceof RegExp && name.test(event)));
  const found = [];
  let now = first;
  for (let done = 0, next = 0; done <= steps; done++) {
    for (; named[next]?.step === done; next++) now = value(named[next]);
    found.push(now);
  }
  return found;
}
