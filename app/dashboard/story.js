/**
 * The story above the views: moving vCPUs, the race, what a kick does, and the cure, with one button each.
 *
 * On a server where nothing has ever run it begins by itself, so that whoever opens the page sees something move.
 */

import { STORY } from "./actions.js";
import { el, put, say } from "./dom.js";
import { count, plural } from "./format.js";

const NAME = "kickstand-story"; // of the setting, and of the lock

/** What each step says, what its button does, and what came of it. */
const STEPS = [
  {
    title: "Four vCPUs run",
    text: "Each is a thread of the VMM that calls KVM_RUN. Green: it executes guest code, which reads the page m2 over and over. A flash: it left the guest, for a device.",
    id: "story-run", label: (vm) => (vm.running ? "" : "Let them run"), press: (app) => app.runner.story(),
    found: (vm) => (vm.kicked ? "Kicked now: see step 3." : `${count(vm.total("entries"))} guest entries so far`),
  },
  {
    title: "The race",
    text: "The VMM makes one memory slot of m1 and m2. KVM can only delete and create: for a moment m2 is nowhere, and a read of it finds a hole.",
    id: "story-race", label: () => "Merge and split, ten times", press: (app) => app.runner.run("rounds-none", { form: ROUNDS }),
    found: (vm, results) => result(results, "rounds-none"),
  },
  {
    title: "What a kick does",
    text: "It sets a bit on every vCPU, gets each out of KVM_RUN, and returns when the last is out. Until the resume KVM_RUN answers EINTR at once: nobody looks at memory.",
    id: "story-kick", label: (vm) => (vm.kicked ? "Resume" : "Kick"), press: (app) => app.runner.run(app.vm().kicked ? "resume" : "kick"),
    found: (vm, results) => (vm.kicked ? [result(results, "kick"), `${plural(vm.total("eintr"), "time")} EINTR so far`].filter(Boolean).join("; ") : result(results, "resume")),
  },
  {
    title: "The cure",
    text: "The same changes, each between a kick and a resume. Every vCPU is outside while m2 is gone, and the guest notices nothing.",
    id: "story-cure", label: () => "The same inside kicks", press: (app) => app.runner.run("rounds-kick", { form: ROUNDS }),
    found: (vm, results) => result(results, "rounds-kick"),
  },
];
const ROUNDS = { rounds: STORY.rounds };

function result(results, id) {
  const found = results.get(id);
  return !found ? "" : found.busy ? "…" : found.text;
}

/** The story's VM, while its story is to be told. */
export function told(app) {
  const hidden = localStorage.getItem(NAME) === "off" || !document.querySelector("#tour")?.hasAttribute("hidden");
  const vm = app.runner.current === STORY.name && app.vm();
  return vm && !hidden && vm.slots.length ? vm : null;
}

/** Begin by itself where that can disturb nobody: the page was opened without a wish, and nothing has ever run. */
export async function begin(app, address) {
  const wished = address.length > 1 || document.hidden || localStorage.getItem(NAME) === "off";
  const used = [...app.store.vms.values()].some((vm) => vm.id !== "default" || !vm.pristine);
  if (wished || used) return;
  const once = (lock) => lock && app.runner.story();
  await (navigator.locks ? navigator.locks.request(NAME, { ifAvailable: true }, once) : once(true));
}

/** The bar with the steps. */
export function story(app) {
  const rows = STEPS.map((step) => {
    const button = el("button", { type: "button", class: "primary", id: step.id, onclick: () => void step.press(app) });
    const found = el("p", { class: "found" });
    return { step, button, found, node: el("li", {}, el("h2", {}, step.title), el("p", {}, step.text), button, found) };
  });
  const hide = () => localStorage.setItem(NAME, "off");
  const remove = el("button", { class: "small", id: "story-end", onclick: () => (hide(), void app.runner.discard(STORY.name)) }, "Stop and remove it");
  const node = el("section", { class: "notice telling", "aria-label": "The story" },
    el("ol", {}, rows.map((row) => row.node)),
    el("p", { class: "about" }, `The VM ${STORY.name} is this page's example and keeps a core busy while it runs; nothing else is touched. `, remove, " ",
      el("button", { class: "small", id: "story-hide", onclick: hide }, "Hide this"), " ",
      el("button", { class: "small", onclick: () => app.startTour() }, "The same slowly: the tour")));
  return {
    node,
    tell(vm) {
      for (const { step, button, found } of rows) {
        say(found, step.found(vm, app.runner.results));
        say(button, step.label(vm));
        button.hidden = !button.textContent;
        button.setAttribute("aria-disabled", String(app.runner.busy > 0));
      }
    },
  };
}
