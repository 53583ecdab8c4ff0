/** Events in sentences, and an episode as the steps that a reader goes through. */

import { duration, hex } from "../page/format.js";
import { covered, slotsAt } from "./asking.js";

const EINTR = 4;
const STATE = {
  waiting: "calls KVM_RUN and queues for the read side of the semaphore",
  kernel: "holds the read side: it is inside KVM_RUN",
  guest: "enters the guest",
  exiting: "has seen the request and is on its way out",
  user: "has given the read side back: it is outside KVM_RUN",
  halted: "sleeps inside KVM_RUN after HLT",
  blocked: "sleeps inside KVM_RUN",
};

/**
 * @typedef {{at: number, record: any, text: string, times: number, torn: boolean}} Step
 *   `at`: the index of the step's (newest) event in the episode
 */

/** @type {Record<string, (data: any, episode: any) => string|null>} */
const SENTENCES = {
  kvm_kick_all({ phase }, episode) {
    if (phase === "requested") return "KICK begins: the bit KVM_REQ_USERSPACE_KICK is set on every vCPU, then it waits for the write side.";
    if (phase === "completed") return `KICK returns after ${duration(episode.completed - episode.requested)}: nobody is inside KVM_RUN, and nobody gets in.`;
    return "KICK gives up and is taken back.";
  },
  kvm_resume_all: ({ phase }) => (phase === "requested" ? "RESUME begins: it clears the bits." : "RESUME is done: vCPUs may enter the guest again."),
  mem_transaction: ({ phase, protect, operations }) => (phase === "begin" ? `A transaction of ${operations ?? "some"} slot changes begins, ${{ kick: "inside a kick", none: "with no protection", list: "as one batch" }[protect] ?? protect}.` : "The transaction ends."),
  kvm_memslot({ change, slot, gpa, npages }) {
    const range = `${hex(gpa)} to ${hex(gpa + npages * 4096 - 1)}`;
    if (change === "delete") return `DELETE slot ${slot}: ${range} is a hole now.`;
    if (change === "create") return `CREATE slot ${slot}: ${range} is RAM.`;
    return `Slot ${slot} changes (${change}): ${range}.`;
  },
  kvm_make_request: ({ vcpu, request }) => `vCPU ${vcpu} is asked: ${request}.`,
  kvm_kick: ({ vcpu }) => `vCPU ${vcpu} is interrupted (an IPI), since it is in guest mode.`,
  kvm_vcpu_wakeup: ({ vcpu }) => `vCPU ${vcpu} wakes.`,
  vcpu_state: ({ vcpu, state }) => `vCPU ${vcpu} ${STATE[state] ?? `is ${state}`}.`,
  kvm_userspace_exit({ vcpu, errno, reason }) {
    if (errno === EINTR) return `KVM_RUN of vCPU ${vcpu} answers −1, EINTR.`;
    return errno ? `KVM_RUN of vCPU ${vcpu} answers −1, errno ${errno}.` : `KVM_RUN of vCPU ${vcpu} answers 0, ${reason}.`;
  },
  kvm_mmio: ({ vcpu, gpa, type }) => `vCPU ${vcpu} ${type === "write" ? "writes" : "reads"} ${gpa}, where no slot is: KVM_EXIT_MMIO.`,
  vmm_rest: ({ phase, why }) => (phase === "begin" ? `The example's threads rest: ${why}.` : "The example's threads go on."),
  kvm_create_vcpu: ({ vcpu }) => `vCPU ${vcpu} is created.`,
};

/** A sentence about an event; null for one that says nothing of its own. */
export function sentence({ event, data }, episode) {
  return SENTENCES[event]?.(data, episode) ?? null;
}

/** The steps of an episode; what a vCPU does again and again while it is kept out is one step with a count. @returns {Step[]} */
export function stepsOf(episode) {
  const steps = [];
  const spinning = new Map();
  let open = false;
  episode.events.forEach((record, at) => {
    const { event, data } = record;
    if (event === "kvm_kick_all" && data.phase === "completed") open = true;
    if (event === "kvm_resume_all") open = false;
    if (!open) spinning.clear();
    const vcpu = data.vcpu;
    if (open && vcpu !== null && spinning.has(vcpu)) {
      if (event === "kvm_userspace_exit" && data.errno === EINTR) again(steps, spinning, vcpu, at, record);
      return;
    }
    if (open && event === "kvm_userspace_exit" && data.errno === EINTR) spinning.set(vcpu, null);
    const torn = event === "kvm_mmio" && isTorn(episode, at, data);
    const text = torn ? tornSentence(data) : sentence(record, episode);
    if (text !== null) steps.push({ at, record, text, times: 1, torn });
  });
  return steps;
}

function again(steps, spinning, vcpu, at, record) {
  let step = spinning.get(vcpu);
  if (!step) {
    step = { at, record, text: "", times: 0, torn: false };
    spinning.set(vcpu, step);
    steps.push(step);
  }
  step.times += 1;
  step.text = `vCPU ${vcpu} calls KVM_RUN again and gets EINTR at once${step.times > 1 ? `, ${step.times} times: it spins` : ""}.`;
}

function isTorn(episode, at, data) {
  const write = data.type === "write";
  return covered(episode.before, Number(data.gpa), write) && !covered(slotsAt(episode, at), Number(data.gpa), write);
}

function tornSentence({ vcpu, gpa, type }) {
  return `vCPU ${vcpu} ${type === "write" ? "writes" : "reads"} ${gpa} and finds a hole: KVM_EXIT_MMIO for an address that is RAM before and after.`;
}
