/**
 * What happened before this page was opened, as the server has it: a reload, or a second tab, tells the same.
 *
 * A vCPU that spins makes thousands of events a second, so of the past beyond the newest only slots, kicks and holes are
 * asked for, which the server keeps for longer.
 */

const NOTABLE = ["kvm_create_vm", "kvm_kick_all", "kvm_resume_all", "mem_transaction", "kvm_memslot", "kvm_mmio", "vmm_rest"];
const NEWEST = 3000;
const MOST = 8000;
const PATIENCE_MS = 20_000; // for what is asked once, and cannot be made good later

/**
 * The events of a VM up to number `seq`, oldest first, and the number of the event from which on none of the notable ones is missing.
 * @returns {Promise<{records: import("../model/store.js").Record[], oldest: number}>}
 */
export async function past(id, seq) {
  const path = `/vms/${encodeURIComponent(id)}/trace?format=events`;
  const [recent, notable] = await Promise.all([lines(`${path}&limit=${NEWEST}`), lines(`${path}&limit=${MOST}&names=${NOTABLE.join()}`)]);
  const from = recent.records[0]?.data.seq ?? Infinity;
  const oldest = Math.max(notable.oldest, notable.records.length < MOST ? 1 : notable.records[0].data.seq);
  const records = [...notable.records.filter(({ data }) => data.seq < from), ...recent.records];
  const known = records.filter(({ data }) => oldest <= data.seq && data.seq <= seq);
  const born = known.findLastIndex(({ event }) => event === "kvm_create_vm"); // before, it was a namesake
  return born < 0 ? { records: known, oldest } : { records: known.slice(born), oldest: 1 };
}

/** What cannot be had is empty, and nothing before now is known: the oldest event is none. */
async function lines(path) {
  try {
    const answer = await fetch(path, { signal: AbortSignal.timeout(PATIENCE_MS), cache: "no-store" });
    if (!answer.ok) return { records: [], oldest: Infinity };
    const text = await answer.text();
    return { records: text.split("\n").filter(Boolean).map((line) => JSON.parse(line)), oldest: Number(answer.headers.get("Kickstand-Oldest")) || 1 };
  } catch {
    return { records: [], oldest: Infinity };
  }
}
