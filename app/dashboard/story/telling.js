/** The story above the views: moving vCPUs, the race, what a kick does, and the cure, one of them open at a time, with one button. */

import { STORY } from "../controls/actions.js";
import { el, say } from "../page/dom.js";
import { count, plural } from "../page/format.js";
import { hide } from "./story.js";

/** What each step says, what its button does, and what came of it. */
const STEPS = [
  {
    title: "Four vCPUs run",
    text: "Each is a thread of the VMM that calls KVM_RUN. Green: it executes guest code, which reads the page m2 over and over.",
    id: "story-run", label: (vm) => (vm.running ? "" : "Let them run"), press: (app) => app.runner.story(), done: (vm) => vm.running > 0,
    found: (vm) => (vm.kicked ? "Kicked now: see step 3." : `${count(vm.total("entries"))} guest entries so far`),
  },
  {
    title: "The race",
    text: "The VMM makes one memory slot of m1 and m2. KVM can only delete and create: for a moment m2 is nowhere, and a read of it meets a hole. Watch the cards.",
    id: "story-race", done: (vm) => vm.score.open.changes > 0, label: () => "Merge and split, ten times", press: (app) => app.runner.run("rounds-none", { form: ROUNDS }),
    found: (vm, results) => result(results, "rounds-none"),
  },
  {
    title: "What a kick does",
    text: "It gets every vCPU out of KVM_RUN and keeps it out: until the resume KVM_RUN answers EINTR at once. In this window nobody looks at memory.",
    id: "story-kick", done: (vm) => !vm.kicked && vm.episodes.some((episode) => episode.requested !== null && !episode.transaction), label: (vm) => (vm.kicked ? "Resume" : "Kick"), press: (app) => app.runner.run(app.vm().kicked ? "resume" : "kick"),
    found: (vm, results) => (vm.kicked ? [result(results, "kick"), `${plural(vm.total("eintr"), "time")} EINTR so far`].filter(Boolean).join("; ") : result(results, "resume")),
  },
  {
    title: "The cure",
    text: "The same changes, each inside a kick. Every vCPU is outside while m2 is gone, and the guest notices nothing.",
    id: "story-cure", done: (vm) => vm.score.kick.changes > 0, label: () => "The same inside kicks", press: (app) => app.runner.run("rounds-kick", { form: ROUNDS }),
    found: (vm, results) => result(results, "rounds-kick"),
  },
];
const ROUNDS = { rounds: STORY.rounds };

function result(results, id) {
  const found = results.get(id);
  return !found ? "" : found.busy ? "…" : found.text;
}

/** What is to be said of the example's rests. */
function restOf(vm) {
  if (vm.resting === "kicked for a minute") return "It rests: it has spun under a kick for a minute. Resume, and it goes on. ";
  if (vm.resting) return `It rests: ${vm.resting}. `;
  return `The VM ${STORY.name} is this page's example; ${vm.rested === "nobody watches" ? "it has rested while nobody looked, and goes on" : "it rests while nobody looks"}. `;
}

/** The bar: the steps by their titles, one of them open, with one button and what came of it. */
export function story(app) {
  let chosen = -1; // the step that somebody opened
  const stops = STEPS.map(({ title }, n) => el("button", { type: "button", class: "link", onclick: () => (chosen = n) }, title));
  const head = el("h2", {});
  const text = el("p", {});
  const press = el("button", { type: "button", class: "primary" });
  const next = el("button", { type: "button", id: "story-next", onclick: () => (chosen = Math.min(STEPS.length - 1, at() + 1)) }, "Next");
  const found = el("p", { class: "found", role: "status" });
  press.addEventListener("click", () => {
    chosen = at();
    void STEPS[chosen].press(app);
  });
  const rest = el("span", {});
  const remove = el("button", { class: "small", id: "story-end", onclick: () => (hide(), void app.runner.discard(STORY.name)) }, "Stop and remove it");
  const node = el("section", { class: "notice telling", "aria-label": "The story" },
    el("ol", { class: "stops" }, stops.map((stop) => el("li", {}, stop))),
    el("div", { class: "now" }, el("div", {}, head, text), el("div", { class: "buttons" }, press, next, found)),
    el("p", { class: "about" }, rest, remove, " ",
      el("button", { class: "small", id: "story-hide", onclick: hide }, "Hide this"), " ",
      el("button", { class: "small", onclick: () => app.startTour() }, "The same slowly: the tour")));

  /** The step that is open: what somebody chose, else the first that is not done. */
  function at() {
    if (chosen >= 0) return chosen;
    const vm = app.vm();
    const first = vm ? STEPS.findIndex((step) => !step.done(vm)) : 0;
    return first < 0 ? STEPS.length - 1 : first;
  }

  return {
    node,
    tell(vm) {
      const open = at();
      const step = STEPS[open];
      stops.forEach((stop, n) => {
        stop.classList.toggle("done", STEPS[n].done(vm));
        if (n === open) stop.setAttribute("aria-current", "step");
        else stop.removeAttribute("aria-current");
      });
      say(rest, restOf(vm));
      say(head, `${open + 1}. ${step.title}`);
      say(text, step.text);
      say(found, step.found(vm, app.runner.results));
      if (press.id !== step.id) press.id = step.id;
      say(press, step.label(vm));
      press.hidden = !press.textContent;
      press.setAttribute("aria-disabled", String(app.runner.busy > 0));
      const over = step.done(vm) && open + 1 < STEPS.length && app.runner.busy === 0;
      next.hidden = !over;
      say(next, over ? `Next: ${STEPS[open + 1].title.toLowerCase()}` : "");
      next.classList.toggle("primary", over);
      press.classList.toggle("primary", !over);
    },
  };
}
