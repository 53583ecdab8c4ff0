/** What a vCPU has pending, and what would wake it, in words. */

import { duration, hex } from "../../page/format.js";

/** In the order in which somebody would expect them. */
const WAKERS = {
  timer: "its timer",
  interrupt: "an interrupt",
  extint: "the 8259 pair",
  nmi: "an NMI",
  sipi: "a start-up IPI",
  init: "INIT",
  signal: "a signal",
};

const listed = (list) => list.map(hex).join(" ");

/** Terms and what is to be said about each; none for a vCPU that nothing waits for and that does not sleep. @returns {[string, string][]} */
export function waits(data) {
  /** @type {[string, string][]} */
  const said = [];
  const pending = pendingOf(data).join(", ");
  if (pending) said.push(["Pending", pending]);
  if (data.in_service.length) said.push(["In service", listed(data.in_service)]);
  if (data.timer) said.push(["Timer", `${hex(data.timer.vector)} in ${duration(data.timer.due_ns)}${MODES[data.timer.mode] ?? ""}${data.timer.masked ? ", masked" : ""}`]);
  if (data.asleep) said.push(["Woken by", wakersOf(data)]);
  return said;
}

const MODES = { periodic: ", then again and again", tsc_deadline: ", by the TSC" };

function pendingOf({ requested, nmi, init, extint, sipi }) {
  return [listed(requested), nmi && "an NMI", init && "INIT", extint && "an interrupt of the 8259 pair", sipi !== null && `a start-up IPI for page ${hex(sipi)}`].filter(Boolean);
}

function wakersOf({ wakes, least_vector: least }) {
  const named = Object.keys(WAKERS).filter((waker) => wakes.includes(waker))
    .map((waker) => (waker === "interrupt" && least !== null ? `${WAKERS.interrupt} from ${hex(least)} up` : WAKERS[waker]));
  const deaf = wakes.includes("nmi") && !wakes.includes("interrupt"); // after HLT with interrupts off
  return `${named.slice(0, -1).join(", ")} or ${named.at(-1)}${deaf ? "; interrupts are off in the guest" : ""}`;
}
