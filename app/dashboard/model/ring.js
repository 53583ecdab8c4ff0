/** Two bounded memories: records in order, and changes of state in typed arrays. */

/** The newest `size` items. @template T */
export class Ring {
  constructor(size) {
    this.size = size;
    /** @type {T[]} */
    this.items = [];
    this.next = 0;
    this.total = 0;
  }

  push(item) {
    this.items[this.next] = item;
    this.next = (this.next + 1) % this.size;
    this.total += 1;
  }

  /** Newest first, until `visit` returns false. */
  back(visit) {
    const kept = this.items.length;
    for (let n = 1; n <= kept; n++) {
      if (visit(this.items[(this.next - n + kept) % kept]) === false) return;
    }
  }

  clear() {
    this.items = [];
    this.next = 0;
  }
}

/** Changes of vCPU states: time in ns, vCPU index, state after and before. */
export class Changes {
  constructor(size = 65536) {
    this.size = size;
    this.t = new Float64Array(size);
    this.vcpu = new Uint16Array(size);
    this.state = new Uint8Array(size);
    this.old = new Uint8Array(size);
    this.next = 0;
    this.kept = 0;
  }

  push(t, vcpu, state, old) {
    const at = this.next;
    this.t[at] = t;
    this.vcpu[at] = vcpu;
    this.state[at] = state;
    this.old[at] = old;
    this.next = at + 1 === this.size ? 0 : at + 1;
    if (this.kept < this.size) this.kept += 1;
  }

  /** The index of the change `n` back from the newest (1). */
  at(n) {
    return this.next >= n ? this.next - n : this.next - n + this.size;
  }

  /** The time of the oldest change that is kept; before it nothing is known. */
  get since() {
    return this.kept ? this.t[this.at(this.kept)] : Infinity;
  }

  /** A copy, for a view that is paused. */
  copy() {
    const copy = Object.assign(Object.create(Changes.prototype), this);
    for (const name of ["t", "vcpu", "state", "old"]) copy[name] = this[name].slice();
    return copy;
  }
}
