/** Example guests: what vCPUs execute, as steps for the script engine and as real machine code. */

export const PAGE = 4096;
/** The story's memory: low RAM for code and counters, and two neighbouring pages, m1 and m2. */
export const RAM = { slot: 0, gpa: 0, size: 16 * PAGE };
export const M1 = { slot: 1, gpa: 0x200000, size: PAGE };
export const M2 = { slot: 2, gpa: 0x201000, size: PAGE };
export const ARENA = RAM.size + M1.size + M2.size;
export const BASE = 0x7f0000000000; // where the server's host memory starts

const READ = ["read", M2.gpa, 4];
const OUT = ["out", "0x3f8", 46];
const LOOPS = 150_000;

/** Mostly reads of m2, and `step` once in about 1,500 turns. */
function rarely(step) {
  return [8, 8, 8, 3].reduce((inner, branches) => [["choose", ...Array(branches - 1).fill([READ]), inner]], [step]);
}

/**
 * @typedef {{name: string, label: string, about: string, steps: any[], code: number[], listing: string}} Guest
 */

/** @type {Guest[]} */
const KINDS = [
  {
    name: "reader",
    label: "reads m2, writes to a port now and then",
    about: "Loads from m2 over and over; every so often an OUT to port 0x3f8 leaves KVM_RUN for the device.",
    steps: rarely(OUT),
    code: [0xb9, ...le(LOOPS), 0xa1, ...le(M2.gpa), 0x49, 0x75, 0xf8, 0x66, 0xba, 0xf8, 0x03, 0xb0, 0x2e, 0xee, 0xeb, 0xea],
    listing: `again: mov  ecx, ${LOOPS}\nread:  mov  eax, [0x201000]   ; m2\n       dec  ecx\n       jnz  read\n       mov  dx, 0x3f8\n       mov  al, '.'\n       out  dx, al           ; KVM_EXIT_IO\n       jmp  again`,
  },
  {
    name: "tight",
    label: "reads m2 and nothing else",
    about: "Never leaves the guest by itself: only a kick gets it out of KVM_RUN.",
    steps: [READ],
    code: [0xa1, ...le(M2.gpa), 0xeb, 0xf9],
    listing: "again: mov  eax, [0x201000]   ; m2\n       jmp  again",
  },
  {
    name: "sleeper",
    label: "reads m2 once and halts",
    about: "HLT: with an interrupt controller the vCPU sleeps inside KVM_RUN and still holds the semaphore.",
    steps: [READ, ["hlt"]],
    code: [0xa1, ...le(M2.gpa), 0xf4, 0xeb, 0xf8],
    listing: "again: mov  eax, [0x201000]   ; m2\n       hlt\n       jmp  again",
  },
];

function le(value) {
  return [value & 255, (value >> 8) & 255, (value >> 16) & 255, (value >>> 24) & 255];
}

/** What the page offers. "mixed" gives each vCPU another kind. */
export const GUESTS = [
  { name: "mixed", label: "one of each kind", about: "Readers that talk to a device, one that never leaves, one that sleeps." },
  ...KINDS.map(({ name, label, about }) => ({ name, label, about })),
];

/** The guest of one vCPU. @returns {Guest} */
export function guestOf(name, vcpu) {
  const order = ["reader", "reader", "tight", "sleeper"];
  const kind = name === "mixed" ? order[vcpu % order.length] : name;
  return KINDS.find((guest) => guest.name === kind) ?? KINDS[0];
}

const FLAT = { base: 0, limit: 0xffffffff, present: 1, dpl: 0, s: 1, l: 0, g: 1, avl: 0, unusable: 0, db: 1 };
const DATA = { ...FLAT, type: 3, selector: 16 };
/** Flat 32-bit protected mode, as the VMM sets it before the first KVM_RUN. */
export const PROTECTED_MODE = {
  cs: { ...FLAT, type: 11, selector: 8 },
  ds: DATA, es: DATA, fs: DATA, gs: DATA, ss: DATA,
  cr0: 0x11,
};

/** Where a vCPU's code lies: sixteen vCPUs in low RAM, then again from the start. */
export function entryOf(vcpu) {
  return 0x100 * ((vcpu % 128) + 1);
}
