/**
 * Episodes: a kick, a memory transaction, or both in one, from its first event to its last.
 *
 * An access is *torn* if it left as MMIO although its address is RAM before and after the episode. While the
 * episode is open "after" is not known; what turns out not to be RAM is struck out when it closes.
 */

import { covered, holes } from "./asking.js";
import { PAGE } from "./guests.js";

const EVENTS = 400; // kept of one episode
const KEPT = 80; // episodes of one VM
const TAIL = 60; // events after the end, so that the return to the guest is part of the story
const LATE_NS = 20e6;
const CALM_NS = 1.5e9; // without changes of slots, after which the next ones are another run
const IMPLICIT_NS = 30e9;

/**
 * @typedef {{t: number, seq: number, change: string, slot: number, gpa: number, size: number,
 *            after: import("./vm.js").Slot[]}} Change
 * @typedef {{t: number, seq: number, vcpu: number, gpa: number|null, len: number, write: boolean, step: number}} Torn
 * @typedef {{number: number, start: number, end: number|null, protect: string|null, transaction: boolean,
 *            implicit: boolean, requested: number|null, completed: number|null, resume: number|null,
 *            resumed: number|null, takenBack: boolean, nested: number, before: import("./vm.js").Slot[],
 *            states: Uint8Array, changes: Change[], torn: Torn[], events: any[], omitted: number, tail: number}} Episode
 */

/** @returns {Episode} */
function make(vm, t) {
  return {
    number: ++vm.made, start: t, end: null, protect: null, transaction: false, implicit: false,
    requested: null, completed: null, resume: null, resumed: null, takenBack: false, nested: 0,
    before: vm.slots.slice(), states: vm.state.slice(0, vm.count), changes: [], torn: [],
    events: [], omitted: 0, tail: TAIL,
  };
}

function opened(vm, t) {
  if (vm.open && !(vm.open.implicit && t - vm.open.start > IMPLICIT_NS)) return vm.open;
  if (vm.open) close(vm, t);
  const last = vm.episodes.at(-1);
  if (!last || t - (last.end ?? t) > CALM_NS) newRun(vm);
  vm.tail = null;
  vm.open = make(vm, t);
  vm.episodes.push(vm.open);
  if (vm.episodes.length > KEPT) vm.episodes.shift();
  return vm.open;
}

/** What was seen in the last run of changes is history now. */
function newRun(vm) {
  for (let i = 0; i < vm.count; i++) if (vm.fresh[i]) vm.touched[i] = 1;
  vm.fresh.fill(0);
}

/** Where an episode counts: was anybody kept out? */
function scoreOf(vm, episode) {
  return episode.requested !== null || episode.how === "list" ? vm.score.kick : vm.score.open;
}

function close(vm, t) {
  const episode = vm.open;
  episode.end = t;
  const torn = episode.torn.filter((access) => access.gpa === null || covered(vm.slots, access.gpa, access.write));
  vm.torn -= episode.torn.length - torn.length;
  const score = scoreOf(vm, episode);
  score.holes -= episode.torn.length - torn.length;
  score.changes += episode.changes.length ? 1 : 0;
  episode.torn = torn;
  vm.open = null;
  vm.tail = episode;
}

function settle(vm, t) {
  const episode = vm.open;
  if (!episode) return;
  const kicked = episode.requested !== null && episode.resumed === null && !episode.takenBack;
  const begun = episode.transaction && episode.protect !== null;
  if (!kicked && !begun && !(episode.implicit && holes(episode, vm.slots).length)) close(vm, t);
}

/** Keep an event with the episode that it belongs to. What opens, divides or closes one is kept however full it is. */
export function keep(vm, record, always = false) {
  const episode = vm.open ?? vm.tail;
  if (!episode) return;
  const most = vm.open ? EVENTS : EVENTS + 2 * TAIL;
  if (episode.events.length < most || (always && episode.events.length < 3 * EVENTS)) episode.events.push(record);
  else episode.omitted += 1;
  if (!vm.open && --episode.tail <= 0) vm.tail = null;
}

/** KVM_KICK_ALL_RUNNING_VCPUS. */
export function kickAll(vm, record) {
  const { t_ns: t, phase } = record.data;
  const episode = opened(vm, t);
  keep(vm, record, true);
  if (phase === "requested") {
    if (episode.requested !== null && episode.resumed === null) episode.nested += 1;
    else Object.assign(episode, { requested: t, completed: null, resume: null, resumed: null, takenBack: false });
    vm.kicked = true;
  } else if (phase === "completed") {
    episode.completed ??= t;
  } else {
    episode.takenBack = true;
    vm.kicked = false;
    settle(vm, t);
  }
}

/** KVM_RESUME_ALL_KICKED_VCPUS. */
export function resumeAll(vm, record) {
  const { t_ns: t, phase } = record.data;
  keep(vm, record, true);
  const episode = vm.open;
  if (!episode || episode.requested === null) return;
  if (phase === "requested") {
    episode.resume ??= t;
    return;
  }
  if (episode.nested) {
    episode.nested -= 1;
    return;
  }
  episode.resumed = t;
  vm.kicked = false;
  settle(vm, t);
}

/** A transaction begins or ends. `protect` is null after its end, so that a kick around it stays open. */
export function transaction(vm, record) {
  const { t_ns: t, phase, protect } = record.data;
  if (phase === "begin") {
    const episode = opened(vm, t);
    const last = vm.episodes.at(-2);
    if (last?.transaction && last.how !== protect) newRun(vm);
    Object.assign(episode, { transaction: true, protect, how: protect, implicit: false });
    keep(vm, record, true);
    return;
  }
  keep(vm, record, true);
  if (!vm.open) return;
  vm.open.protect = null;
  settle(vm, t);
}

/** A slot changed. */
export function memslot(vm, record) {
  const { t_ns: t, seq, change, slot, gpa, npages } = record.data;
  const known = vm.open;
  const episode = known || change !== "create" ? opened(vm, t) : null; // new memory alone is no story
  if (episode && !known) episode.implicit = true;
  keep(vm, record, true);
  const old = vm.slots.find((other) => other.slot === slot);
  const rest = vm.slots.filter((other) => other.slot !== slot);
  const made = { slot, gpa, size: npages * 4096, flags: old?.flags ?? 0, hva: vm.hva(gpa) };
  vm.slots = change === "delete" ? rest : [...rest, made].sort((a, b) => a.gpa - b.gpa);
  vm.version += 1;
  if (!episode) return;
  if (episode.changes.length < EVENTS) {
    episode.changes.push({ t, seq, change, slot, gpa, size: npages * 4096, after: vm.slots.slice() });
  }
  if (episode.implicit) settle(vm, t);
}

/** An access left as MMIO; it is torn if RAM is there before and, as far as is known, after. */
export function access(vm, record, i) {
  const { t_ns: t, seq, gpa, len, type } = record.data;
  keep(vm, record, true);
  const address = Number(gpa);
  const write = type === "write";
  const last = vm.episodes.at(-1);
  const episode = vm.open ?? (last && t - (last.end ?? t) < LATE_NS ? last : null);
  const was = episode && covered(episode.before, address, write);
  if (!episode || !(was || covered(vm.slots, address, write))) return;
  note(vm, episode, i, { t, seq, vcpu: vm.ids[i], gpa: address, len, write, step: episode.changes.length });
}

/** The guest could not go on: in the middle of a change of slots that is a torn fetch. */
export function internalError(vm, record, i) {
  const episode = vm.open;
  if (!episode || !holes(episode, vm.slots).length) return;
  const { t_ns: t, seq } = record.data;
  note(vm, episode, i, { t, seq, vcpu: vm.ids[i], gpa: null, len: 0, write: false, step: episode.changes.length });
}

function note(vm, episode, i, torn) {
  if (episode.torn.length < EVENTS) episode.torn.push(torn);
  vm.torn += 1;
  scoreOf(vm, episode).holes += 1;
  vm.tornBy[i] += 1;
  vm.fresh[i] += 1;
  vm.tornAt[i] = torn.t;
  vm.touched[i] = 1;
}

/**
 * A snapshot came instead of events: begin or end what must have begun or ended meanwhile. A kick that careless
 * userspace answers with a flood of EINTR may itself be among the events that were skipped.
 */
export function reconcile(vm, t, seq) {
  const kicked = vm.open !== null && vm.open.requested !== null && vm.open.resumed === null;
  if (vm.kicked && !kicked && t) {
    const episode = opened(vm, t);
    Object.assign(episode, { requested: t, completed: t });
    const data = { seq, vm: vm.id, vcpu: null, t_ns: t, phase: "completed" };
    episode.events.push({ id: null, event: "kvm_kick_all", data });
  } else if (!vm.kicked && vm.open) {
    if (kicked) Object.assign(vm.open, { resume: vm.open.resume ?? t, resumed: t });
    vm.open.protect = null;
    close(vm, t);
  }
}

/** A VM's slots before `records`, from those behind them. @param {import("./vm.js").Slot[]} slots */
export function rewound(slots, records) {
  let found = slots.slice();
  for (let n = records.length - 1; n >= 0; n--) {
    const { event, data } = records[n];
    if (event !== "kvm_memslot") continue;
    const others = found.filter(({ slot }) => slot !== data.slot);
    if (data.change === "create") found = others;
    else if (data.change === "delete") found = [...others, { slot: data.slot, gpa: data.gpa, size: data.npages * PAGE, flags: 0, hva: null }];
  }
  return found.sort((a, b) => a.gpa - b.gpa);
}
