/**
 * The page's state, from snapshots and events. No clock, no network, no page: the same input gives the same state.
 *
 * Events are numbered without a hole, so a number that is not the next one means that something was missed.
 */

import { access, internalError, keep, kickAll, memslot, reconcile, resumeAll, rewound, transaction } from "./episodes.js";
import { Ring } from "./ring.js";
import { codeOf } from "./states.js";
import { Vm } from "./vm.js";

const EINTR = 4;
const JOURNAL = 4000;
const NOTABLE = 600;
const GAPS = 50;
const SPIN_NS = 1e6; // a vCPU that spins while it is kept out would fill the memory of the lanes

/**
 * @typedef {{id: string|null, event: string, data: any}} Record  an event as the stream sends it
 * @typedef {{from: number, to: number|null, reason: string, count: number|null}} Gap  times in ns of the server's clock
 */

export class Store {
  constructor() {
    /** @type {Map<string, Vm>} */
    this.vms = new Map();
    /** @type {string|null} */
    this.epoch = null;
    this.seq = 0;
    this.t = 0; // the server's clock at the newest event, ns
    /** @type {Ring} */
    this.journal = new Ring(JOURNAL);
    /** @type {Ring} what concerns whole VMs, and torn accesses, for longer */
    this.notable = new Ring(NOTABLE);
    /** @type {Gap[]} */
    this.gaps = [];
    this.missed = 0;
    this.restarts = 0;
    this.events = 0;
    /** @type {any} */
    this.exploration = null; // the newest event about one
    /** @type {Map<string, any>} shapes that wait for the events before them */
    this.due = new Map();
  }

  /**
   * Take over what happened before this page looked: the records of each VM lead to what its shape says.
   * @param {any[]} shapes @param {{records: Record[], oldest: number}[]} pasts
   */
  recall(shapes, pasts) {
    pasts.forEach(({ records, oldest }, n) => {
      const vm = this._vm(shapes[n].id);
      vm.take(shapes[n], NaN, { states: true, slots: true });
      Object.assign(vm, { slots: rewound(vm.slots, records), kicked: false, oldest });
    });
    const all = pasts.flatMap(({ records }) => records).sort((a, b) => a.data.seq - b.data.seq);
    for (const record of all) this._event(record);
  }

  /**
   * Take over the whole state at `seq`.
   * @param {any[]} shapes VMs as the API describes them
   */
  snapshot(shapes, epoch, seq, t = this.t) {
    if (this.epoch !== null && epoch !== this.epoch) {
      this.restarts += 1;
      this.vms.clear();
      this.journal.clear();
      this.notable.clear();
      this.gaps = [];
    }
    this.epoch = epoch ?? this.epoch;
    this.seq = seq;
    this.due.clear();
    const gap = this.gaps.at(-1);
    if (gap && gap.to === null) gap.to = t;
    this.t = t;
    const named = new Set(shapes.map((shape) => shape.id));
    for (const id of this.vms.keys()) if (!named.has(id)) this.vms.delete(id);
    for (const shape of shapes) {
      const vm = this._vm(shape.id);
      vm.take(shape, t || NaN, { states: true, slots: true });
      reconcile(vm, t, seq);
    }
  }

  /**
   * Take over what events do not tell: threads, requests, flags of slots. An answer can be ahead of the events, and
   * then waits for them: slots that are newer than the event that changes them would be changed twice.
   */
  refresh(shape) {
    if (shape.epoch !== this.epoch) return;
    this.due.set(shape.id, shape);
    this._settle();
  }

  _settle() {
    for (const [id, shape] of this.due) {
      if (shape.seq > this.seq) continue;
      this.due.delete(id);
      const vm = this.vms.get(id);
      vm?.take(shape, this.t, { states: false, slots: vm.slotsAt <= shape.seq });
    }
  }

  /** Apply records in order. Returns false if some are missing before them: then a snapshot is needed. */
  apply(records) {
    for (const record of records) {
      if (record.event === "heartbeat") continue;
      if (CONTROL[record.event]) {
        CONTROL[record.event](this, record);
        continue;
      }
      const { seq } = record.data;
      if (seq <= this.seq && this.epoch !== null && sameEpoch(record, this.epoch)) continue;
      if (this.epoch === null) this.epoch = record.id?.split("-")[0] ?? null;
      else if (seq !== this.seq + 1 || !sameEpoch(record, this.epoch)) return false;
      this._event(record);
    }
    return true;
  }

  _event(record) {
    const { data } = record;
    this.seq = data.seq;
    this.t = data.t_ns;
    this.events += 1;
    this.journal.push(record);
    if (data.vcpu === null || record.event === "kvm_mmio") this.notable.push(record);
    if (record.event.includes("explor")) this.exploration = record;
    const handle = EVENTS[record.event];
    if (data.vm === null || data.vm === undefined) return;
    const vm = this._vm(data.vm);
    const i = data.vcpu === null || data.vcpu === undefined ? -1 : vm.vcpu(data.vcpu);
    if (handle) handle(vm, record, i, this);
    if (OWN.has(record.event)) vm.slotsAt = data.seq;
    else if (!UNTOLD.has(record.event)) keep(vm, record);
    if (this.due.size) this._settle();
  }

  _vm(id) {
    let vm = this.vms.get(id);
    if (!vm) this.vms.set(id, (vm = new Vm(id)));
    return vm;
  }
}

function sameEpoch(record, epoch) {
  return record.id === null || record.id.startsWith(`${epoch}-`);
}

/** Events of the stream itself. */
const CONTROL = {
  snapshot(store, { id, data }) {
    store.snapshot(data.vms ?? [data], data.epoch ?? id?.split("-")[0], data.seq, data.t_ns);
  },
  gap(store, { data }) {
    if (data.count) store.missed += data.count;
    store.gaps.push({ from: store.t, to: null, reason: data.reason, count: data.count ?? null });
    if (store.gaps.length > GAPS) store.gaps.shift();
  },
  bye() {},
};

/** Events that keep themselves with their episode, since they open or close it. */
const OWN = new Set(["kvm_kick_all", "kvm_resume_all", "mem_transaction", "kvm_memslot", "kvm_mmio"]);

/** Events that others of an episode tell as well: a kick's requests, and modes, which go with entries and exits. */
const UNTOLD = new Set(["kvm_make_request", "kvm_mode"]);

/** @type {{[name: string]: (vm: Vm, record: any, i: number, store: Store) => void}} */
const EVENTS = {
  vcpu_state(vm, { data }, i) {
    const code = codeOf(data.state);
    const old = codeOf(data.old);
    if (old === 0) vm.runs[i] += 1;
    vm.state[i] = code;
    vm.since[i] = data.t_ns;
    vm.touched[i] = 1;
    if (!vm.kicked || data.t_ns - vm.pushed[i] > SPIN_NS) {
      vm.changes.push(data.t_ns, i, code, old);
      vm.pushed[i] = data.t_ns;
    }
  },
  kvm_entry(vm, record, i) {
    vm.entries[i] += 1;
    vm.entered[i] = 1;
  },
  kvm_userspace_exit(vm, record, i) {
    const { data } = record;
    vm.pulse[i] = data.t_ns;
    if (data.errno === EINTR) {
      vm.eintr[i] += 1;
      vm.spins[i] += vm.entered[i] ? 0 : 1;
      vm.entered[i] = 0;
    } else if (!data.errno) {
      vm.exits[i] += 1;
      vm.lastExit[i] = data.reason;
      if (data.reason === "KVM_EXIT_INTERNAL_ERROR") internalError(vm, record, i);
    }
  },
  kvm_pio(vm, record, i) {
    vm.pio[i] += 1;
  },
  kvm_mmio(vm, record, i) {
    vm.mmio[i] += 1;
    access(vm, record, i);
  },
  vmm_rest(vm, { data }) {
    vm.resting = data.phase === "begin" ? data.why : "";
    if (vm.resting) vm.rested = vm.resting;
  },
  kvm_kick_all: kickAll,
  kvm_resume_all: resumeAll,
  kvm_memslot: memslot,
  mem_transaction: transaction,
  kvm_create_vm(vm, { data }) {
    Object.assign(vm, { variant: data.variant, engine: data.engine, mode: data.mode });
  },
  kvm_create_vcpu(vm, { data }, i) {
    vm.mpStates[i] = data.mp_state;
    vm.touched[i] = 1;
  },
  kvm_destroy_vm(vm, record, i, store) {
    store.vms.delete(vm.id);
  },
};
