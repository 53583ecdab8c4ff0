/** The page's state from snapshots and events, without a page: `node --test tests/dashboard`. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { neighbours, splittable } from "../../app/dashboard/controls/actions.js";
import { past } from "../../app/dashboard/live/past.js";
import { lastId, parse } from "../../app/dashboard/live/stream.js";
import { holes, title } from "../../app/dashboard/model/asking.js";
import { rewound } from "../../app/dashboard/model/episodes.js";
import { stepsOf } from "../../app/dashboard/model/explain.js";
import { Ring } from "../../app/dashboard/model/ring.js";
import { codeOf } from "../../app/dashboard/model/states.js";
import { Store } from "../../app/dashboard/model/store.js";
import { Watchdog } from "../../app/dashboard/model/watchdog.js";

const GUEST = codeOf("guest");
const PAGE = 4096;
const region = (slot, gpa) => ({ slot, flags: 0, guest_phys_addr: `0x${gpa.toString(16)}`, memory_size: PAGE, userspace_addr: `0x${(0x7f0000000000 + gpa).toString(16)}` });
const counters = { runs: 1, exits: 0, eintr: 0, spins: 0, entries: 1, halts: 0, mmio: 0, pio: 0 };
const vcpu = (id) => ({ id, state: "guest", mp_state: "RUNNABLE", requests: [], thread: null, exit_reason: "KVM_EXIT_UNKNOWN", counters });
const shape = (more = {}) => ({
  id: "v", variant: "sticky", engine: "script", mode: "precise", irqchip: false, kicked: false, holds: 0, epoch: "e", seq: 5,
  memory_regions: [region(1, 0x1000), region(2, 0x2000)], vcpus: [vcpu(0), vcpu(1)], ...more,
});

function watched(more) {
  const store = new Store();
  store.snapshot([shape(more)], "e", 5, 5000);
  return { store, vm: store.vms.get("v") };
}

/** Events from number 6 on: [name, vCPU, members]. */
const numbered = (events, from = 6) => events.map(([event, id, more], n) => ({ id: `e-${from + n}`, event, data: { seq: from + n, vm: "v", vcpu: id, t_ns: (from + n) * 1000, ...more } }));
const slot = (change, number, gpa, npages = 1) => ["kvm_memslot", null, { change, slot: number, gpa, npages }];
const begin = (protect) => ["mem_transaction", null, { phase: "begin", protect, operations: 3 }];
const end = ["mem_transaction", null, { phase: "end", protect: "none", operations: 3 }];
const kick = (phase) => ["kvm_kick_all", null, { phase }];
const resume = (phase) => ["kvm_resume_all", null, { phase }];
const reads = (id, gpa) => ["kvm_mmio", id, { type: "unsatisfied-read", len: 4, gpa, val: "" }];
const MERGE = [slot("delete", 1, 0x1000), slot("delete", 2, 0x2000), slot("create", 1, 0x1000, 2)];
const SPLIT = [slot("delete", 1, 0x1000, 2), slot("create", 1, 0x1000), slot("create", 2, 0x2000)];

test("events are applied once, in order, and a hole in their numbers is noticed", () => {
  const { store, vm } = watched();
  const left = ["vcpu_state", 0, { state: "user", old: "guest" }];
  assert.equal(store.apply(numbered([left])), true);
  assert.equal(vm.state[0], codeOf("user"));
  assert.equal(store.apply(numbered([["vcpu_state", 0, { state: "guest", old: "user" }]])), true); // seen before
  assert.equal(vm.state[0], codeOf("user"));
  assert.equal(store.apply(numbered([left], 9)), false);
  assert.equal(vm.state[1], GUEST);
});

test("a merge with nobody kept out is an episode with the holes that were met", () => {
  const { store, vm } = watched();
  store.apply(numbered([begin("none"), MERGE[0], MERGE[1], reads(0, "0x2010"), reads(1, "0x2010"), MERGE[2], end]));
  assert.equal(vm.torn, 2);
  assert.deepEqual(vm.score, { open: { changes: 1, holes: 2 }, kick: { changes: 0, holes: 0 } });
  assert.deepEqual([...vm.fresh.slice(0, 2)], [1, 1]);
  assert.equal(title(vm.episodes[0]), "#1 merge, unprotected");
  assert.deepEqual(holes(vm.episodes[0], vm.episodes[0].changes[1].after), [[0x1000, 0x2000], [0x2000, 0x3000]]);
});

test("the same inside a kick counts there, and the cards are clean again", () => {
  const { store, vm } = watched();
  store.apply(numbered([begin("none"), MERGE[0], MERGE[1], reads(0, "0x2010"), MERGE[2], end]));
  store.apply(numbered([begin("kick"), kick("requested"), kick("completed"), ...SPLIT, resume("requested"), resume("completed"), end], 12));
  assert.deepEqual(vm.score, { open: { changes: 1, holes: 1 }, kick: { changes: 1, holes: 0 } });
  assert.deepEqual([...vm.fresh.slice(0, 2)], [0, 0]);
  assert.equal(title(vm.episodes[1]), "#2 split, inside a kick");
  assert.equal(vm.kicked, false);
});

test("an access of what is no RAM behind the change was a device's all along", () => {
  const { store, vm } = watched();
  store.apply(numbered([begin("none"), MERGE[0], reads(0, "0x1010"), end]));
  assert.equal(vm.torn, 0);
  assert.equal(vm.score.open.holes, 0);
});

test("a kick that is taken back leaves nobody kicked", () => {
  const { store, vm } = watched();
  store.apply(numbered([kick("requested")]));
  assert.equal(vm.kicked, true);
  store.apply(numbered([kick("taken back")], 7));
  assert.equal(vm.kicked, false);
  assert.equal(vm.episodes[0].takenBack, true);
});

test("slots are rewound to what they were before their changes", () => {
  const now = [{ slot: 1, gpa: 0x1000, size: 2 * PAGE, flags: 0, hva: 1 }];
  const before = rewound(now, numbered(MERGE));
  assert.deepEqual(before.map(({ slot: number, gpa, size }) => [number, gpa, size]), [[1, 0x1000, PAGE], [2, 0x2000, PAGE]]);
  assert.deepEqual(rewound(now, numbered([...MERGE, ...SPLIT, ...MERGE])).length, 2);
  assert.deepEqual(rewound(now, []), now);
});

test("a page that is opened later tells what one that was open tells", () => {
  const { store, vm } = watched();
  const events = numbered([begin("none"), MERGE[0], MERGE[1], reads(0, "0x2010"), MERGE[2], end, begin("kick"), kick("requested"), kick("completed"), ...SPLIT, resume("requested"), resume("completed"), end]);
  store.apply(events);
  const late = new Store();
  late.recall([shape({ seq: events.at(-1).data.seq })], [{ records: events, oldest: 1 }]);
  late.snapshot([shape()], "e", events.at(-1).data.seq, store.t);
  const second = late.vms.get("v");
  assert.deepEqual(second.score, vm.score);
  assert.equal(second.torn, vm.torn);
  assert.deepEqual(second.episodes.map(title), vm.episodes.map(title));
  assert.deepEqual(second.slots.map(({ gpa }) => gpa), vm.slots.map(({ gpa }) => gpa));
  assert.equal(late.journal.items.length, store.journal.items.length);
});

test("another epoch is another server: what was is dropped, and said to be", () => {
  const { store, vm } = watched();
  store.apply(numbered([begin("none"), ...MERGE, end]));
  store.snapshot([shape()], "f", 2, 9000);
  assert.equal(store.restarts, 1);
  assert.equal(store.journal.items.length, 0);
  assert.notEqual(store.vms.get("v"), vm);
});

test("a gap is counted, and closed by the snapshot behind it", () => {
  const { store } = watched();
  store.apply([{ id: null, event: "gap", data: { reason: "slow", count: 7 } }]);
  assert.equal(store.missed, 7);
  assert.equal(store.gaps[0].to, null);
  store.snapshot([shape()], "e", 20, 9000);
  assert.equal(store.gaps[0].to, 9000);
});

test("rests of the example are known until it goes on", () => {
  const { store, vm } = watched();
  store.apply(numbered([["vmm_rest", null, { phase: "begin", why: "nobody watches" }]]));
  assert.equal(vm.resting, "nobody watches");
  store.apply(numbered([["vmm_rest", null, { phase: "end", why: "" }]], 7));
  assert.deepEqual([vm.resting, vm.rested], ["", "nobody watches"]);
});

test("steps of a kick: who spins meanwhile is one step with a count", () => {
  const { store, vm } = watched();
  const eintr = ["kvm_userspace_exit", 0, { errno: 4, reason: "KVM_EXIT_INTR" }];
  store.apply(numbered([kick("requested"), ["kvm_kick", 0, {}], kick("completed"), eintr, eintr, eintr, eintr, resume("requested"), resume("completed")]));
  const texts = stepsOf(vm.episodes[0]).map(({ text }) => text);
  assert.match(texts[0], /KICK begins/);
  assert.ok(texts.some((text) => /3 times: it spins/.test(text)), texts.join("\n"));
  assert.match(texts.at(-1), /RESUME is done/);
});

test("what looks wrong is found by rules", () => {
  const { store, vm } = watched();
  const dog = new Watchdog();
  dog.look(vm, store, store.t);
  assert.deepEqual(dog.found, []);
  store.apply(numbered([begin("none"), MERGE[0], MERGE[1], reads(0, "0x2010"), MERGE[2], end]));
  dog.look(vm, store, store.t);
  assert.deepEqual(dog.found.map(({ key, text }) => [key, text]), [["torn", "1 hole seen"]]);
  store.apply(numbered([kick("requested")], 12));
  dog.look(vm, store, store.t + 3e9);
  assert.ok(dog.found.some(({ key }) => key === "pending"));
});

test("neighbours and what can be split", () => {
  const { vm } = watched();
  assert.deepEqual(neighbours(vm).map(({ slot: number }) => number), [1, 2]);
  assert.equal(splittable(vm), null);
});

test("a ring keeps the newest", () => {
  const ring = new Ring(3);
  for (let n = 0; n < 5; n++) ring.push(n);
  const found = [];
  ring.back((item) => {
    found.push(item);
    return true;
  });
  assert.deepEqual(found, [4, 3, 2]);
});

test("a block of the stream is lines of JSON, and names the last event", () => {
  const text = '{"id":"e-6","event":"kvm_entry","data":{"seq":6}}\n{"id":"e-7","event":"kvm_exit","data":{"seq":7}}\n{"event":"heartbeat","data":{}}\n';
  assert.deepEqual(parse(text).map(({ event }) => event), ["kvm_entry", "kvm_exit", "heartbeat"]);
  assert.equal(lastId(text), "e-7");
});

test("of a VM that had a namesake only its own past is told", async () => {
  const lines = [["kvm_create_vm", 1], ["kvm_mmio", 2], ["kvm_create_vm", 3], ["kvm_mmio", 4]].map(([event, seq]) => ({ event, data: { seq } }));
  globalThis.fetch = async (path) => new Response((path.includes("names=") ? lines : lines.slice(3)).map((line) => JSON.stringify(line)).join("\n"), { headers: { "Kickstand-Oldest": "1" } });
  const { records, oldest } = await past("demo", 9);
  assert.deepEqual(records.map(({ data }) => data.seq), [3, 4]);
  assert.equal(oldest, 1);
});

test("of a past that is known in part only what nothing is missing from is told, and from where on", async () => {
  const lines = [["kvm_kick_all", 2], ["kvm_memslot", 3], ["kvm_mmio", 5]].map(([event, seq]) => ({ event, data: { seq } }));
  globalThis.fetch = async (path) => new Response((path.includes("names=") ? lines : []).map((line) => JSON.stringify(line)).join("\n"), { headers: { "Kickstand-Oldest": path.includes("names=") ? "3" : "9" } });
  const { records, oldest } = await past("demo", 9);
  assert.deepEqual(records.map(({ data }) => data.seq), [3, 5]);
  assert.equal(oldest, 3);
});

test("a past that cannot be had is not told as one in which nothing happened", async () => {
  globalThis.fetch = async () => new Response("", { status: 503 });
  assert.deepEqual(await past("demo", 9), { records: [], oldest: Infinity });
});
