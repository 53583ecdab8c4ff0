/** What the buttons do: each action is a list of requests, made before it is sent, so that it can be shown as curl. */

import { ARENA, BASE, M1, M2, PAGE, PROTECTED_MODE, RAM, entryOf, guestOf } from "../model/guests.js";
import { HALTED } from "../model/states.js";
import { duration, hex, plural } from "../page/format.js";

/**
 * @typedef {import("../live/curl.js").Request} Request
 * @typedef {import("../live/api.js").Answer} Answer
 * @typedef {import("../model/vm.js").Vm} Vm
 * @typedef {{name: string, vcpus: number, variant: string, engine: string, irqchip: boolean, guest: string,
 *            behaviour: string, rounds: number, watched?: boolean, inside?: boolean}} Form
 * @typedef {{id: string, label: string, key?: string, about: string, danger?: boolean, vm?: (form: Form) => string,
 *            can: (vm: Vm|undefined, form: Form) => string|null, requests: (vm: Vm, form: Form, hva?: number) => Request[],
 *            outcome: (answers: Answer[], before: {torn: number}, vm: Vm) => string}} Action
 */

const KICK_MS = 2000;
/** @returns {Request} */
const post = (path, body = undefined) => ({ method: "POST", path, body });
/** @returns {Request} */
const put = (path, body) => ({ method: "PUT", path, body });

/** The path of a VM; `default` has a short one. */
export function pathOf(id) {
  return id === "default" ? "/vm" : `/vms/${encodeURIComponent(id)}`;
}

/** The path of a vCPU. */
export function vcpuPath(id, vcpu) {
  return id === "default" ? `/vcpu/${vcpu}` : `${pathOf(id)}/vcpu/${vcpu}`;
}

const needsVm = (vm) => (vm ? null : "there is no VM");
const needsVcpus = (vm) => needsVm(vm) ?? (vm.count ? null : "the VM has no vCPU");

// -- slots -------------------------------------------------------------------------------------------------

const region = (slot, gpa, size, hva) => ({ slot, flags: 0, guest_phys_addr: hex(gpa), memory_size: size, userspace_addr: hex(hva) });
const gone = (slot) => ({ slot: slot.slot, memory_size: 0 });

/** Two slots that are neighbours, in the guest and in the host; null if there are none. @returns {import("../model/vm.js").Slot[]|null} */
export function neighbours(vm) {
  const slots = vm.slots.filter((slot) => slot.hva !== null && !slot.flags);
  for (let n = 1; n < slots.length; n++) {
    const [low, high] = [slots[n - 1], slots[n]];
    if (low.gpa + low.size === high.gpa && low.hva + low.size === high.hva) return [low, high];
  }
  return null;
}

/** A slot that can be split: what a merge made, else any of two pages or more above the low RAM. */
export function splittable(vm) {
  return vm.slots.find((slot) => slot.hva !== null && !slot.flags && slot.gpa && slot.size >= 2 * PAGE) ?? null;
}

/** @param {import("../model/vm.js").Slot[]} pair */
function mergeOf([low, high]) {
  return [gone(low), gone(high), region(low.slot, low.gpa, low.size + high.size, low.hva)];
}

function splitOf(slot, free, at = slot.size / 2) {
  const half = Math.floor(at / PAGE) * PAGE;
  return [gone(slot), region(slot.slot, slot.gpa, half, slot.hva), region(free, slot.gpa + half, slot.size - half, slot.hva + half)];
}

function freeSlot(vm) {
  const used = new Set(vm.slots.map((slot) => slot.slot));
  let free = 1;
  while (used.has(free)) free += 1;
  return free;
}

function transact(vm, operations, protect) {
  return post(`${pathOf(vm.id)}/memory-transaction`, { operations, protect });
}

/** Merge and split, again and again; begins with whichever is possible. */
function rounds(vm, form, protect) {
  const pair = neighbours(vm);
  const whole = pair ? { ...pair[0], size: pair[0].size + pair[1].size } : splittable(vm);
  if (!whole) return [];
  const merge = pair && transact(vm, mergeOf(pair), protect);
  const split = transact(vm, splitOf(whole, pair ? pair[1].slot : freeSlot(vm), pair?.[0].size), protect);
  if (!merge) return [split];
  return Array.from({ length: form.rounds }, () => [merge, split]).flat();
}

const once = (name, protect, find, operations) => ({
  can: (vm) => needsVm(vm) ?? (find(vm) ? null : name === "merge" ? "no two neighbouring slots" : "no slot of two pages"),
  requests: (vm) => (find(vm) ? [transact(vm, operations(vm), protect)] : []),
  outcome: torn,
});

function torn(answers, before, vm) {
  const drains = answers.map(({ data }) => data?.drain_ns ?? 0).filter(Boolean).sort((a, b) => a - b);
  const kicks = drains.length ? `; a kick took ${duration(drains[drains.length >> 1])}` : "";
  const seen = vm.torn - before.torn;
  const times = answers.length > 1 ? `${plural(answers.length, "change")}: ` : "";
  return `${times}${seen ? plural(seen, "hole") : "no hole"} seen${kicks}`;
}

// -- the actions -------------------------------------------------------------------------------------------

/** @type {Action[]} */
export const ACTIONS = [
  {
    id: "create", label: "Create VM", about: "KVM_CREATE_VM and KVM_CREATE_VCPU", vm: (form) => form.name,
    can: (vm, form) => (form.name ? null : "it needs a name"),
    requests: (vm, form) => [post("/vms", { id: form.name, vcpus: form.vcpus, variant: form.variant, engine: form.engine, irqchip: form.irqchip })],
    outcome: (answers) => `VM ${answers[0].data.id} with ${plural(answers[0].data.vcpus.length, "vCPU")}, variant ${answers[0].data.variant}`,
  },
  {
    id: "delete", label: "Delete VM", about: "ends its runs with EIO; there is no way back", danger: true, can: needsVm,
    requests: (vm) => [{ method: "DELETE", path: pathOf(vm.id) }], outcome: () => "the VM is gone",
  },
  {
    id: "load", label: "Load the guest", about: "host memory, three slots, and a program for each vCPU",
    can: (vm) => needsVcpus(vm) ?? (vm.running ? "stop the threads first" : vm.engine === "kvm" ? "use the API with /dev/kvm" : null),
    requests: load,
    outcome: (answers) => `${plural(answers.length, "call")}: memory and guests are in place`,
  },
  {
    id: "start", label: "Start userspace", about: "a VMM thread for each vCPU that loops KVM_RUN",
    can: (vm) => needsVcpus(vm) ?? (vm.running === vm.count ? "all threads run" : null),
    requests: (vm, form) => vm.ids.filter((_, i) => !vm.threads[i]?.running).map((id) => post(`${vcpuPath(vm.id, id)}/start`, { behaviour: form.behaviour, while_watched: Boolean(form.watched) })),
    outcome: (answers) => `${plural(answers.length, "thread")} started`,
  },
  {
    id: "stop", label: "Stop userspace", about: "a signal to each VMM thread",
    can: (vm) => needsVm(vm) ?? (vm.running ? null : "no thread runs"),
    requests: (vm) => vm.ids.filter((_, i) => vm.threads[i]?.running).map((id) => post(`${vcpuPath(vm.id, id)}/stop`)),
    outcome: (answers) => `${plural(answers.length, "thread")} stopped`,
  },
  {
    id: "wake", label: "Wake sleepers", about: "an interrupt (MSI) to each halted vCPU",
    can: (vm) => needsVm(vm) ?? (vm.irqchip ? (vm.state.subarray(0, vm.count).includes(HALTED) ? null : "nobody is halted") : "the VM has no interrupt controller"),
    requests: (vm) => vm.ids.filter((_, i) => vm.state[i] === HALTED).map((id) => post(`${pathOf(vm.id)}/msi`, { address: hex(0xfee00000 + id * 4096), data: 48 })),
    outcome: (answers) => `${plural(answers.length, "interrupt")} sent`,
  },
  {
    id: "kick", label: "Kick", key: "k", about: "KVM_KICK_ALL_RUNNING_VCPUS", can: needsVm,
    requests: (vm) => [post(`${pathOf(vm.id)}/kick`, { timeout_ms: KICK_MS })],
    outcome: ([{ data }]) => `kick ${data.kick_id}: ${plural(data.vcpus_stopped, "vCPU")} out of KVM_RUN in ${duration(data.drain_ns)}${data.changed ? "" : " (it was kicked already)"}`,
  },
  {
    id: "resume", label: "Resume", key: "r", about: "KVM_RESUME_ALL_KICKED_VCPUS", can: needsVm,
    requests: (vm) => [post(`${pathOf(vm.id)}/resume`)],
    outcome: ([{ data }]) => (data.changed ? `${plural(data.cleared, "request")} cleared: vCPUs may enter again` : "nothing was kicked"),
  },
  { id: "merge-none", label: "Merge", about: "DELETE m1, DELETE m2, CREATE m1+m2 under running vCPUs", ...once("merge", "none", neighbours, (vm) => mergeOf(neighbours(vm))) },
  { id: "merge-kick", label: "Merge", about: "KICK, the same three calls, RESUME", ...once("merge", "kick", neighbours, (vm) => mergeOf(neighbours(vm))) },
  { id: "split-none", label: "Split", about: "DELETE m1+m2, CREATE m1, CREATE m2", ...once("split", "none", splittable, (vm) => splitOf(splittable(vm), freeSlot(vm))) },
  { id: "split-kick", label: "Split", about: "KICK, the same three calls, RESUME", ...once("split", "kick", splittable, (vm) => splitOf(splittable(vm), freeSlot(vm))) },
  { id: "rounds-none", label: "Merge and split, many times", about: "under running vCPUs", can: (vm, form) => needsVm(vm) ?? (rounds(vm, form, "none").length ? null : "no slots to merge or split"), requests: (vm, form) => rounds(vm, form, "none"), outcome: torn },
  { id: "rounds-kick", label: "Merge and split, many times", about: "each change inside a kick", can: (vm, form) => needsVm(vm) ?? (rounds(vm, form, "kick").length ? null : "no slots to merge or split"), requests: (vm, form) => rounds(vm, form, "kick"), outcome: torn },
];

/** An action by its id. @returns {Action} */
export function action(id) {
  return /** @type {Action} */ (ACTIONS.find((known) => known.id === id));
}

/** The calls that give a VM memory and guests. `hva`: what the server answered to the first. */
function load(vm, form, hva) {
  const path = pathOf(vm.id);
  const known = vm.hva(RAM.gpa);
  const base = hva ?? known ?? BASE;
  const requests = known === null ? [post(`${path}/host-memory`, { size: ARENA, name: "guest" })] : [];
  if (!vm.slots.length) {
    let offset = 0;
    for (const { slot, gpa, size } of [RAM, M1, M2]) {
      const { slot: _, ...rest } = region(slot, gpa, size, base + offset);
      requests.push(put(`${path}/memory-regions/${slot}`, rest));
      offset += size;
    }
  }
  for (const [i, id] of vm.ids.entries()) requests.push(...program(vm, form, i, id, base));
  return requests;
}

/** @returns {Request[]} */
function program(vm, form, i, id, base) {
  const guest = guestOf(form.guest, i);
  const here = vcpuPath(vm.id, id);
  const wakeUp = vm.irqchip && vm.mpStates[i] !== "RUNNABLE" ? [put(`${here}/mp-state`, { mp_state: "RUNNABLE" })] : [];
  if (vm.engine === "script") return [...wakeUp, put(`${here}/program`, guest.steps)];
  const entry = entryOf(i);
  return [
    ...wakeUp,
    { method: "PUT", path: `${pathOf(vm.id)}/host-memory/${hex(base + entry)}`, bytes: new Uint8Array(guest.code) },
    put(`${here}/sregs`, PROTECTED_MODE),
    put(`${here}/regs`, { rip: hex(entry), rflags: 2 }),
  ];
}

/** Everything that has to be called for the story, in order: actions and what the form says for each. */
export const STORY = { name: "demo", vcpus: 4, variant: "sticky", engine: "script", irqchip: true, guest: "mixed", behaviour: "careless", rounds: 10, watched: true };

// -- the buttons --------------------------------------------------------------------------------------------

/** @typedef {[string, (form: any) => string]} Button the id of a button, and its action by the form */

/** A button that changes slots does so unprotected or inside a kick, as the switch says. @returns {(form: any) => string} */
export const protectable = (id) => (form) => `${id}-${form.inside ? "kick" : "none"}`;

/** A button with one action. @param {string} id @returns {Button} */
export const plainly = (id) => [id, () => id];
