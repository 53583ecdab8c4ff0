/** What looks wrong: found by rules over the state, each with why it matters and where to look. */

import { count, duration, plural, some } from "../page/format.js";
import { HALTED, inside } from "./states.js";

const SPINS_A_SECOND = 20;
const SLOW_DRAIN_NS = 50e6;
const PENDING_NS = 1e9;
const RECENT_NS = 60e9;

/**
 * @typedef {{key: string, level: "bad"|"note", text: string, why: string, view: string}} Warning
 */

/** The warnings about one VM and the stream. @returns {Warning[]} */
function warningsOf(vm, store, now, spinning) {
  const found = [];
  const add = (key, level, text, why, view) => found.push({ key, level, text, why, view });
  if (vm) {
    const spinners = vm.ids.filter((id) => (spinning.get(id) ?? 0) > SPINS_A_SECOND);
    const rate = spinners.reduce((sum, id) => sum + spinning.get(id), 0);
    if (spinners.length) add("spin", "bad", `${some(spinners.map((id) => `vCPU ${id}`))} ${spinners.length === 1 ? "spins" : "spin"}: ${count(rate)} EINTR a second`, "Userspace calls KVM_RUN again and again while it is kicked; each call takes and gives the read side for nothing. Well-behaved userspace waits for the resume.", "vcpus");
    if (vm.torn) add("torn", "bad", `${plural(vm.torn, "hole")} seen`, "A guest read RAM and met a hole, since slots were changed under it.", "memory");
    const open = vm.open;
    if (open?.requested && open.completed === null && now - open.requested > PENDING_NS) add("pending", "bad", `a kick has been waiting for ${duration(now - open.requested)}`, "Somebody inside KVM_RUN does not come out; with a global semaphore it may belong to another VM.", "timeline");
    const slow = vm.episodes.filter((episode) => episode.completed !== null && episode.completed - episode.requested > SLOW_DRAIN_NS && now - episode.completed < RECENT_NS);
    if (slow.length) add("slow", "note", `${plural(slow.length, "slow kick")}: the last took ${duration(slow.at(-1).completed - slow.at(-1).requested)}`, "Draining takes as long as the slowest vCPU needs to leave.", "timeline");
    const back = vm.episodes.filter((episode) => episode.takenBack && now - episode.start < RECENT_NS);
    if (back.length) add("back", "bad", `${plural(back.length, "kick")} timed out and ${back.length === 1 ? "was" : "were"} taken back`, "A vCPU, or another VM's vCPU, never gave up the read side.", "timeline");
    const stuck = vm.ids.filter((_, i) => inside(vm.state[i]) && vm.state[i] !== HALTED && vm.kicked && open?.completed !== null && now - vm.since[i] > PENDING_NS);
    if (stuck.length) add("stuck", "bad", `${some(stuck.map((id) => `vCPU ${id}`))} inside KVM_RUN although kicked`, "The variant let it in.", "vcpus");
    const dead = vm.threads.map((thread, i) => ({ thread, id: vm.ids[i] })).filter(({ thread }) => thread && !thread.running && thread.ended !== "stopped");
    if (dead.length) add("ended", "bad", `the userspace of ${some(dead.map(({ id }) => `vCPU ${id}`))} has ended: ${dead[0].thread.ended}`, "The guest could not go on.", "vcpus");
    const last = vm.episodes.at(-1);
    const idle = vm.ids.filter((_, i) => vm.threads[i]?.running && vm.state[i] === 0 && now - vm.since[i] > 2 * PENDING_NS);
    if (idle.length && !vm.kicked && last?.resumed) add("asleep", "note", `${some(idle.map((id) => `vCPU ${id}`))} has not entered the guest since the resume`, "Its userspace waits for something else, such as an event after HLT.", "vcpus");
  }
  const gaps = store.gaps.filter(({ reason }) => reason === "slow");
  if (gaps.length) add("gap", "note", `${count(store.missed)} events were skipped, in ${plural(gaps.length, "gap")}`, "This page could not read as fast as events came. What it shows is right again after each gap; the past has a grey hole.", "timeline");
  if (store.restarts) add("restart", "note", `the server was restarted ${plural(store.restarts, "time")}`, "What was before is gone from this page.", "timeline");
  return found;
}

/** Looks at a VM now and then: how fast vCPUs spin is seen from one look to the next. */
export class Watchdog {
  constructor() {
    /** @type {Warning[]} */
    this.found = [];
    /** @type {Map<number, number>} EINTR a second, by vCPU */
    this.rates = new Map();
    this.before = null;
  }

  look(vm, store, now) {
    if (vm) this._rate(vm);
    this.found = warningsOf(vm, store, now, this.rates);
  }

  _rate(vm) {
    const now = performance.now();
    const { before } = this;
    if (before && before.vm === vm && now - before.at < 900) return;
    if (before?.vm === vm) vm.ids.forEach((id, i) => this.rates.set(id, ((vm.spins[i] - (before.spins[i] ?? 0)) / (now - before.at)) * 1000));
    else this.rates.clear();
    this.before = { vm, at: now, spins: vm.spins.slice(0, vm.count) };
  }
}
