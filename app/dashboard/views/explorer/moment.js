/** The lanes and the memory map of a counterexample, at one of its steps. */

import { holes } from "../../model/asking.js";
import { codeOf, glyph, STATES } from "../../model/states.js";
import { el, put, say } from "../../page/dom.js";
import { plural } from "../../page/format.js";
import { scale, strip } from "../memory.js";
import { momentsOf } from "./moments.js";

const PHASE = { none: "open to all", draining: "KICK waits", open: "window: nobody inside" };

/** @param {(step: number) => void} go called when a reader points at a step */
export function moment(go) {
  const lanes = el("div", { class: "minilanes" });
  const maps = el("div", { class: "rows" });
  const node = el("div", { class: "moment" }, el("h4", {}, "Timeline"), lanes, el("h4", {}, "Memory map after this step"), maps);
  /** @type {import("./moments.js").Moments[]} */
  let vms = [];
  let steps = [];
  let rows = [];

  /** @param {any} example a counterexample as the API tells it */
  function lay(example) {
    vms = momentsOf(example);
    steps = example.steps;
    node.hidden = !vms.length;
    const several = vms.length > 1;
    const users = example.threads.filter((name) => !/CPU\d+$/.test(name)).map((name) => row(name, name, () => "", () => ""));
    rows = [...users, ...vms.flatMap((vm) => [
      row(several ? `kick of ${vm.id}` : "kick", null, (done) => `phase ${vm.phases[done]}`, (done) => PHASE[vm.phases[done]]),
      ...vm.vcpus.map((vcpu) => {
        const name = several ? `${vm.id}/CPU${vcpu}` : `CPU${vcpu}`;
        const states = vm.states.get(vcpu) ?? [];
        return row(name, name, (done) => `state ${states[done]}`, (done) => [glyph(codeOf(states[done])), STATES[codeOf(states[done])].label]);
      }),
    ])];
    put(lanes, rows.map(({ node }) => node));
  }

  /** A lane: a cell for each step, and in words what holds now. */
  function row(name, thread, kind, words) {
    const cells = steps.map((step, n) => el("i", { class: `${kind(n + 1)}${step.thread === thread ? " moves" : ""}`, title: `step ${n + 1}`, onclick: () => go(n) }));
    const now = el("b", {});
    return { cells, now, words, node: el("div", { class: "lane" }, el("span", {}, name), el("div", { "aria-hidden": "true" }, cells), now) };
  }

  function show(at) {
    for (const { cells, now, words } of rows) {
      cells.forEach((cell, n) => {
        cell.classList.toggle("ahead", n > at);
        cell.classList.toggle("now", n === at);
      });
      put(now, words(at + 1));
    }
    put(maps, vms.map((vm) => mapOf(vm, at + 1)));
  }

  function mapOf(vm, done) {
    const whole = { before: vm.slots[0], changes: vm.slots.map((after) => ({ after })) };
    const torn = vm.torn.filter(({ step }) => step <= done);
    const open = holes(whole, vm.slots[done]);
    const words = el("p", { class: torn.length ? "torn" : "about" });
    say(words, torn.length ? `${plural(torn.length, "access", "accesses")} of what was RAM fell into a hole.` : open.length ? "A hole: whoever looks now leaves as MMIO." : "All of it is RAM.");
    return el("div", { class: "row" }, el("span", { class: "label" }, el("b", {}, vms.length > 1 ? vm.id : "guest"), el("small", {}, "physical")), strip(scale([], whole), vm.slots[done], open, torn), words);
  }

  return { node, lay, show };
}
