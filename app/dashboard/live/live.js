/**
 * Keeps the store up to date: first the whole state, then every block of the stream, and the whole state again
 * whenever something was missed. Says how fresh all this is.
 */

import { get, send } from "./api.js";
import { Shared } from "./leader.js";
import { past } from "./past.js";
import { parse } from "./stream.js";

const HEARTBEAT_MS = 10_000;
const STALE_MS = 2 * HEARTBEAT_MS + 2000; // two heartbeats missed
const LOST_MS = 1500;
const FROZEN_MS = 3 * HEARTBEAT_MS;
const WORK_MS = 5; // of a frame for reading events
const BACKLOG = 2 << 20; // characters that wait for their turn; beyond, a snapshot is cheaper
const SLOW_SYNC_MS = 1500;
const RECALLED = 16; // VMs whose past is asked for

export class Live {
  /** @param {import("../model/store.js").Store} store @param {import("../page/frame.js").Frame} frame */
  constructor(store, frame) {
    this.store = store;
    this.frame = frame;
    this.status = "connecting";
    this.leads = false;
    this.heardAt = performance.now();
    this.lostAt = 0;
    this.base = Infinity; // smallest difference between our clock and the server's, ms
    this.lag = 0;
    this.resyncs = 0;
    this.dropped = 0; // times that blocks were thrown away here
    /** @type {string[]} */
    this.waiting = [];
    this.waitingSize = 0;
    this.syncing = false;
    this.working = false;
    this.shared = new Shared({
      position: () => (store.epoch === null ? null : `${store.epoch}-${store.seq}`),
      block: (text) => this._block(text),
      status: (status) => this._status(status),
      role: (leads) => (this.leads = leads),
    });
    document.addEventListener("visibilitychange", () => document.hidden || void this.resync());
    setInterval(() => this._watch(), 1000);
  }

  /** Get what was and what is, and follow. Blocks that another tab passes on meanwhile are applied after it. */
  async start() {
    this.syncing = true;
    await this._recall();
    this.syncing = false;
    if (this.store.epoch === null) await this.resync();
    else await this._work();
    this.shared.start();
  }

  /** The state with what led to it. Without the past, as on a server that has it no more, the state alone. */
  async _recall() {
    const answer = await send({ method: "GET", path: "/vms" });
    const { vms } = answer.ok ? answer.data : { vms: [] };
    if (!vms.length) return;
    const [{ epoch, seq }] = vms;
    const pasts = await Promise.all(vms.slice(0, RECALLED).map((shape) => past(shape.id, seq)));
    this.store.recall(vms.slice(0, pasts.length), pasts);
    this.store.snapshot(vms, epoch, seq, this.store.t);
    this.resyncs += 1;
  }

  /** What is shown is not what is: the connection is lost, or nothing was heard for two heartbeats. */
  get stale() {
    const now = performance.now();
    return now - this.heardAt > STALE_MS || (this.status !== "live" && this.lostAt > 0 && now - this.lostAt > LOST_MS);
  }

  /** The server's clock now, as far as can be said, ns. */
  get now() {
    return this.base === Infinity || this.stale ? this.store.t : Math.max(this.store.t, (performance.now() - this.base) * 1e6);
  }

  /** How long ago something was, ns; NaN until the server has told its time, which an idle one does with a heartbeat. */
  age(t) {
    return this.base === Infinity ? NaN : Math.max(0, this.now - t);
  }

  /** Get the whole state. Blocks that come meanwhile are applied after it. */
  async resync() {
    if (this.syncing) return;
    this.syncing = true;
    const answer = await send({ method: "GET", path: "/vms" });
    if (answer.ok) {
      const { vms } = answer.data;
      if (vms.length) this.store.snapshot(vms, vms[0].epoch, vms[0].seq, this.now);
      else if (this.store.epoch !== null) for (const id of [...this.store.vms.keys()]) this.store.vms.delete(id);
      this.resyncs += 1;
    } else if (answer.status === 401) {
      this._status("refused");
    }
    this.syncing = false;
    await this._work();
  }

  /** Read something about a VM; null if it cannot be had. What is gone, or about to go, is not asked for. */
  async read(id, below = "") {
    const vm = this.store.vms.get(id);
    if (!vm || vm.leaving || this.syncing) return null;
    const answer = get(`/vms/${encodeURIComponent(id)}${below}`);
    vm.asked.add(answer);
    void answer.finally(() => vm.asked.delete(answer));
    return answer;
  }

  /** A VM is about to be deleted: ask no more, and wait for what was asked. A 404 would be a complaint on the console. */
  async leave(vm) {
    vm.leaving = true;
    await Promise.all(vm.asked);
  }

  /** Ask for what events do not tell about one VM. */
  async refresh(id) {
    const shape = await this.read(id);
    if (shape && !this.syncing) this.store.refresh(shape);
    for (let turns = 0; turns < 30 && this.store.due.has(id); turns++) await new Promise((resolve) => setTimeout(resolve, 10));
    return shape !== null;
  }

  /** Refresh `current()` now and then, as long as somebody looks. */
  keepFresh(current) {
    const again = async () => {
      const id = current();
      const vm = id && this.store.vms.get(id);
      if (vm && !document.hidden && this.status === "live") await this.refresh(id);
      setTimeout(again, SLOW_SYNC_MS * (vm && vm.count > 128 ? 3 : 1));
    };
    void again();
  }

  _status(status) {
    if (status !== "live" && this.status === "live") this.lostAt = performance.now();
    const back = status === "live" && this.status === "lost";
    if (status === "live") this.heardAt = performance.now();
    this.status = status;
    if (back) void this.resync(); // what was here before may be gone
  }

  _watch() {
    if (performance.now() - this.heardAt > FROZEN_MS) {
      this.heardAt = performance.now() - STALE_MS;
      this.shared.takeOver();
    }
  }

  _block(text) {
    this.heardAt = performance.now();
    if (document.hidden) return undefined;
    this.waiting.push(text);
    this.waitingSize += text.length;
    if (this.waitingSize > BACKLOG) {
      this.waiting = [];
      this.waitingSize = 0;
      this.dropped += 1;
      return this.resync();
    }
    return this._work();
  }

  /** Apply what waits, a few milliseconds a frame; the stream is not read meanwhile. */
  async _work() {
    if (this.working) return;
    this.working = true;
    while (this.waiting.length && !this.syncing && !document.hidden) {
      if (this.frame.spent() > WORK_MS) await this.frame.next();
      const text = this.waiting.shift() ?? "";
      this.waitingSize -= text.length;
      this.frame.timed(() => this._apply(text));
    }
    if (document.hidden) {
      this.waiting = [];
      this.waitingSize = 0;
    }
    this.working = false;
  }

  _apply(text) {
    const records = parse(text);
    if (!this.store.apply(records)) void this.resync();
    const t = records.at(-1)?.data?.t_ns; // a heartbeat's too
    if (!t) return;
    const difference = performance.now() - t / 1e6;
    if (difference < this.base || this.store.restarts !== this.seenRestarts) this.base = difference;
    this.seenRestarts = this.store.restarts;
    this.lag = difference - this.base;
  }
}
