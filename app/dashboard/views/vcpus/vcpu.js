/** One vCPU in words, and what can be done with it: run it once, start and stop its thread, signal it. */

import { vcpuPath } from "../../controls/actions.js";
import { complaint, get, send } from "../../live/api.js";
import { curl } from "../../live/curl.js";
import { STATES } from "../../model/states.js";
import { el, put, say } from "../../page/dom.js";
import { count, duration } from "../../page/format.js";
import { waits } from "./waits.js";

const RUN = { timeout_ms: 1000, nowait: true };
const PENDING_MS = 1000;
/** @type {[string, string, any][]} the last part of the path, the button, the body */
const DO = [
  ["run", "Run once", RUN],
  ["start", "Start its thread", { behaviour: "careless" }],
  ["stop", "Stop its thread", undefined],
  ["signal", "Signal", undefined],
];

export function vcpuPanel(app) {
  const name = el("b", {});
  const facts = el("span", {});
  const pending = el("dl", { class: "pending", "aria-label": "Interrupts" });
  const result = el("p", { class: "result" });
  const buttons = DO.map(([verb, label, body]) => el("button", { type: "button", class: "small", id: `vcpu-${verb}`, onclick: () => perform(verb, body) }, label));
  const line = el("code", { class: "line" });
  const node = el("section", { class: "vcpu", "aria-label": "The chosen vCPU", hidden: true }, el("p", {}, name, " ", facts), pending, el("div", { class: "buttons" }, buttons), result, line);
  for (const [n, [verb, , body]] of DO.entries()) {
    for (const event of ["focus", "mouseenter"]) buttons[n].addEventListener(event, () => (shown = [verb, body]));
  }
  let vm = null;
  let i = 0;
  /** @type {[string, any]} */
  let shown = ["run", RUN];

  function request(verb, body) {
    return { method: "POST", path: `${vcpuPath(vm.id, vm.ids[i])}/${verb}`, body: verb === "start" ? { behaviour: app.form.behaviour } : body };
  }

  let asked = { of: "", at: -Infinity };

  /** What is pending is no event: it is asked for while somebody looks, once a second at most. */
  async function askPending() {
    const of = `${vcpuPath(vm.id, vm.ids[i])}/interrupts`;
    if (of === asked.of && performance.now() - asked.at < PENDING_MS) return;
    if (of !== asked.of) put(pending); // it was another vCPU's
    asked = { of, at: performance.now() };
    const data = await get(of);
    if (asked.of === of) put(pending, (data ? waits(data) : []).map(([term, text]) => [el("dt", {}, term), el("dd", {}, text)]));
  }

  async function perform(verb, body) {
    const answer = await send(request(verb, body));
    result.className = `result ${answer.ok ? "good" : "bad"}`;
    say(result, answer.ok ? outcome(answer.data) : complaint(answer));
    await app.live.refresh(vm.id);
  }

  return {
    node,
    /** Show the vCPU at an index. */
    show(machine, index) {
      vm = machine;
      i = index;
      node.hidden = !vm;
      if (!vm) return;
      const thread = vm.threads[i];
      say(name, `vCPU ${vm.ids[i]}`);
      const age = app.live.age(vm.since[i]);
      const since = Number.isNaN(age) ? "" : ` for ${duration(age)}`;
      say(facts, [
        `${STATES[vm.state[i]].label}${since}: ${STATES[vm.state[i]].meaning}`,
        thread ? `${thread.behaviour} userspace${thread.running ? "" : `, ended: ${thread.ended}`}` : "no thread of the server",
        `${count(vm.eintr[i])} EINTR, ${count(vm.spins[i])} of them spins`,
        vm.requests[i].join(" ") || "no request pending",
      ].join(" · "));
      say(line, curl(request(...shown)));
      void askPending();
    },
  };
}

function outcome(data) {
  if (!("ret" in data)) return "done";
  const what = data.ret < 0 ? `${data.ret}, ${data.errno} (${data.cause ?? "no cause"})` : `${data.ret}, ${data.exit_reason}`;
  return data.exit_reason === undefined ? "done" : `KVM_RUN answered ${what} after ${duration(data.run_ns)}`;
}
