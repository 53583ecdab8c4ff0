/** One virtual machine as the page knows it: typed arrays for what changes often, objects for the rest. */

import { Changes } from "./ring.js";
import { codeOf } from "./states.js";

/**
 * @typedef {{slot: number, gpa: number, size: number, flags: number, hva: number|null}} Slot
 * @typedef {{behaviour: string, running: boolean, ended: string|null}|null} Thread
 */

const COUNTERS = ["runs", "exits", "eintr", "spins", "entries", "halts", "mmio", "pio"];

export class Vm {
  /** @param {string} id */
  constructor(id) {
    this.id = id;
    this.variant = "";
    this.engine = "";
    this.mode = "";
    this.irqchip = false;
    this.kicked = false;
    this.holds = 0;
    /** @type {Slot[]} */
    this.slots = [];
    /** What host memory was seen behind which addresses, newest first. @type {Slot[]} */
    this.backing = [];
    /** @type {number[]} */
    this.ids = [];
    /** @type {Map<number, number>} */
    this.index = new Map();
    /** @type {Thread[]} */
    this.threads = [];
    /** @type {string[][]} */
    this.requests = [];
    /** @type {string[]} */
    this.mpStates = [];
    /** @type {string[]} */
    this.lastExit = [];
    this.changes = new Changes();
    /** @type {import("./episodes.js").Episode[]} */
    this.episodes = [];
    this.open = null;
    this.tail = null;
    this.made = 0;
    this.torn = 0; // accesses of RAM that fell into a hole
    /** Changes of slots that are over, and holes seen in them: with nobody kept out, and inside kicks. */
    this.score = { open: { changes: 0, holes: 0 }, kick: { changes: 0, holes: 0 } };
    this.version = 0;
    this.slotsAt = 0; // the number of the event that last changed slots or kicked
    this.oldest = 1; // the number of the first event that the server could still tell of
    this.resting = ""; // why its threads rest
    this.rested = ""; // why they did, until somebody has read it
    this.leaving = false; // it is about to be deleted, so nobody asks for it
    /** @type {Set<Promise<any>>} questions about it that are not answered yet */
    this.asked = new Set();
    /** What the server counts, by vCPU. @type {any} */
    this.runs = this.exits = this.eintr = this.spins = this.entries = this.halts = this.mmio = this.pio = undefined;
    this._room(16);
  }

  get count() {
    return this.ids.length;
  }

  _room(wanted) {
    const grow = (Type, old) => {
      const made = new Type(wanted);
      if (old) made.set(old);
      return made;
    };
    this.state = grow(Uint8Array, this.state);
    this.entered = grow(Uint8Array, this.entered);
    this.touched = grow(Uint8Array, this.touched);
    this.since = grow(Float64Array, this.since);
    this.pulse = grow(Float64Array, this.pulse);
    this.pushed = grow(Float64Array, this.pushed);
    this.tornBy = grow(Uint32Array, this.tornBy);
    this.fresh = grow(Uint32Array, this.fresh); // of these, what the newest run of changes brought
    this.tornAt = grow(Float64Array, this.tornAt);
    for (const name of COUNTERS) this[name] = grow(Uint32Array, this[name]);
  }

  /** The index of a vCPU, which is made if it is new. */
  vcpu(id) {
    const known = this.index.get(id);
    if (known !== undefined) return known;
    const made = this.ids.length;
    if (made === this.state.length) this._room(2 * made);
    this.ids.push(id);
    this.index.set(id, made);
    this.threads.push(null);
    this.requests.push([]);
    this.mpStates.push("RUNNABLE");
    this.lastExit.push("");
    this.version += 1;
    return made;
  }

  /**
   * Take over what the server says: states with counters, and slots with the kick, if asked, since events keep these newer.
   * @param {any} shape @param {number} t @param {{states: boolean, slots: boolean}} what
   */
  take(shape, t, { states, slots }) {
    for (const name of ["variant", "engine", "mode", "irqchip"]) this[name] = shape[name];
    if (slots) {
      this.kicked = shape.kicked;
      this.holds = shape.holds;
      this.slots = shape.memory_regions.map(slotOf).sort((a, b) => a.gpa - b.gpa);
    }
    for (const slot of this.slots) this._back(slot);
    for (const vcpu of shape.vcpus) this._takeVcpu(vcpu, t, states);
  }

  _back(slot) {
    const same = (other) => other.gpa === slot.gpa && other.size === slot.size;
    this.backing = [slot, ...this.backing.filter((other) => !same(other))].slice(0, 64);
  }

  /** The host address behind a guest-physical one, now or the last time there was a slot; null if never. */
  hva(gpa) {
    const holds = (slot) => slot.hva !== null && gpa >= slot.gpa && gpa < slot.gpa + slot.size;
    const slot = this.slots.find(holds) ?? this.backing.find(holds);
    return slot ? slot.hva + (gpa - slot.gpa) : null;
  }

  _takeVcpu(shape, t, states) {
    const fresh = !this.index.has(shape.id);
    const i = this.vcpu(shape.id);
    if (pending(this.requests[i]) !== pending(shape.requests)) this.touched[i] = 1;
    this.requests[i] = shape.requests;
    this.threads[i] = shape.thread;
    this.mpStates[i] = shape.mp_state;
    if (!states && !fresh) return;
    this.lastExit[i] = shape.counters.exits ? shape.exit_reason : "";
    for (const name of COUNTERS) this[name][i] = shape.counters[name] ?? 0;
    const code = codeOf(shape.state);
    if (code !== this.state[i] || fresh) {
      if (!fresh) this.changes.push(t, i, code, this.state[i]);
      this.state[i] = code;
      this.since[i] = t;
    }
    this.touched[i] = 1;
  }

  /** How many vCPUs are in each state. */
  tally() {
    const tally = [0, 0, 0, 0, 0, 0, 0];
    for (let i = 0; i < this.ids.length; i++) tally[this.state[i]] += 1;
    return tally;
  }

  /** The sum of a counter over the vCPUs. */
  total(counter) {
    let sum = 0;
    for (let i = 0; i < this.ids.length; i++) sum += this[counter][i];
    return sum;
  }

  /** vCPUs whose VMM thread runs. */
  get running() {
    return this.threads.filter((thread) => thread?.running).length;
  }

  /** Nothing has been done with it: no memory, no thread, no run. */
  get pristine() {
    return !this.slots.length && !this.running && !this.total("runs") && !this.total("entries");
  }
}

/** A kick is pending for the vCPU. */
export function pending(requests) {
  return requests.includes("KVM_REQ_USERSPACE_KICK");
}

/** @returns {Slot} a region of the API */
export function slotOf(region) {
  return {
    slot: region.slot,
    gpa: Number(region.guest_phys_addr),
    size: region.memory_size,
    flags: region.flags,
    hva: Number(region.userspace_addr),
  };
}
