/** Six steps from "what is a slot" to the cure and its price, on live VMs, for somebody who has never heard of any of it. */

import { action } from "../controls/actions.js";
import { curl } from "../live/curl.js";
import { el, put, say } from "../page/dom.js";
import { count, plural } from "../page/format.js";
import * as url from "../page/url.js";

const VM = "tour";
const ROUNDS = { rounds: 10 };

/**
 * @typedef {{title: string, text: string[], do: string, action: string, view: string, run: (app: any, memo: any) => Promise<any>,
 *            seen: (vm: any, memo: any) => string|null}} Step
 */

/** @type {Step[]} */
const STEPS = [
  {
    title: "A machine and its memory", view: "memory", do: "Make the machine", action: "load",
    text: [
      "A virtual machine is a process. Its guest believes in physical memory that starts at address 0; in truth that memory is a piece of the process, the VMM.",
      "A memory slot is the VMM's word to KVM: “guest-physical addresses from here to there are backed by this piece of me.” An address without a slot is no RAM: whoever touches it leaves the guest, and the VMM has to play a device. That is called MMIO.",
      "The machine gets three slots. Look at slots 1 and 2: two pages, one right after the other. We call them m1 and m2.",
    ],
    async run(app) {
      await app.runner.discard(VM);
      const form = { name: VM, vcpus: 3, variant: "sticky", engine: "script", irqchip: false, guest: "reader" };
      return (await app.runner.run("create", { form })) && app.runner.run("load", { vm: VM, form });
    },
    seen: (vm) => (vm?.slots.length >= 3 ? `${plural(vm.slots.length, "slot")}: low RAM, m1 and m2.` : null),
  },
  {
    title: "vCPUs run", view: "vcpus", do: "Start three vCPUs", action: "start",
    text: [
      "A virtual CPU is a thread of the VMM that calls KVM_RUN. The call returns when the guest needs something from the VMM, such as a device; then the thread calls it again.",
      "Each of these three reads m2 over and over and writes to a device now and then. Green with a triangle means: executing guest code. Every exit flashes.",
    ],
    run: (app) => app.runner.run("start", { vm: VM, form: { behaviour: "careless", watched: true } }),
    seen: (vm) => (vm?.total("entries") > 3 ? `${count(vm.total("entries"))} times a vCPU entered the guest so far.` : null),
  },
  {
    title: "The problem", view: "memory", do: "Merge m1 and m2, ten times", action: "rounds-none",
    text: [
      "The VMM wants one slot in place of the two. KVM cannot resize a slot, so it takes three calls: DELETE m1, DELETE m2, CREATE m1+m2. Then it splits them again, ten times over.",
      "In between, m2 is nowhere. A vCPU that reads it right then finds a hole where there was RAM, and will be RAM again. The guest did nothing wrong, and yet its read ends as MMIO. On real machines the guest crashes.",
    ],
    async run(app, memo) {
      memo.before = app.vm()?.torn ?? 0;
      return app.runner.run("rounds-none", { vm: VM, form: ROUNDS });
    },
    seen: (vm, memo) => (memo.before !== undefined && vm?.torn > memo.before ? `${plural(vm.torn - memo.before, "read")} of good RAM fell into a hole. They are red.` : null),
  },
  {
    title: "A kick", view: "timeline", do: "Kick, and go through it", action: "kick",
    text: [
      "The proposal: stop everybody first. KVM_KICK_ALL_RUNNING_VCPUS sets a bit on every vCPU and interrupts those in the guest. Each sees the bit, leaves KVM_RUN with EINTR (“interrupted”), and gives back its share of a lock.",
      "When the last is out, the kick gets the lock and returns: now nobody looks at the memory map. Go through it with Step, or the arrow keys: semaphore and lanes follow.",
    ],
    async run(app) {
      if (!(await app.runner.run("kick", { vm: VM }))) return false;
      await new Promise((resolve) => setTimeout(resolve, 150));
      await app.runner.run("resume", { vm: VM });
      const kick = app.vm()?.episodes.findLast((episode) => episode.completed !== null);
      if (kick) url.write({ episode: kick.number, step: 0 });
      app.pickEpisode?.(kick?.number);
      return true;
    },
    seen: (vm) => (vm?.episodes.some(({ completed, transaction }) => completed !== null && !transaction) ? "The kick drained every vCPU. Its steps are under the lanes." : null),
  },
  {
    title: "The cure", view: "memory", do: "Merge inside kicks, ten times", action: "rounds-kick",
    text: [
      "The same ten rounds, but each between a kick and a resume. While the slots change, every vCPU is outside KVM_RUN; one that tries to get in is turned away by its bit.",
      "After KVM_RESUME_ALL_KICKED_VCPUS they go on, and m2 is where it was. No read meets a hole, and the guest notices nothing.",
    ],
    async run(app, memo) {
      memo.cured = app.vm()?.torn ?? 0;
      memo.done = await app.runner.run("rounds-kick", { vm: VM, form: ROUNDS });
      return memo.done;
    },
    seen: (vm, memo) => (memo.done && vm ? (vm.torn === memo.cured ? "No hole was seen in twenty changes." : `${plural(vm.torn - memo.cured, "hole")} seen: that is a bug worth a mail.`) : null),
  },
  {
    title: "The price, and what is left", view: "vcpus", do: "Kick, and hold it for a second", action: "kick",
    text: [
      "These threads are careless: turned away with EINTR, they call KVM_RUN again at once, thousands of times a second. They spin. Well-behaved userspace would wait for the resume. Watch EINTR and Spins.",
      "There is more: a device exit that is lost, a vCPU that is created meanwhile, two VMs that share one lock. The list on the mailing list was long. The Explorer goes through every interleaving of each variant and proves which are safe; the variant holds is Kickstand's own answer.",
    ],
    async run(app, memo) {
      memo.spins = app.vm()?.total("spins") ?? 0;
      if (!(await app.runner.run("kick", { vm: VM }))) return false;
      await new Promise((resolve) => setTimeout(resolve, 1000));
      await app.runner.run("resume", { vm: VM });
      return app.live.refresh(VM);
    },
    seen: (vm, memo) => (memo.spins !== undefined && vm?.total("spins") > memo.spins ? `${count(vm.total("spins") - memo.spins)} useless calls of KVM_RUN in a second.` : null),
  },
];

export function tour(root, app) {
  const memo = {};
  let at = -1;
  let busy = false;
  const head = el("h2", { tabindex: -1 });
  const body = el("div", { class: "text" });
  const go = el("button", { type: "button", class: "primary", id: "tour-do", onclick: () => void perform() });
  const found = el("p", { class: "found", role: "status" });
  const line = el("code", { class: "line" });
  const back = el("button", { type: "button", id: "tour-back", onclick: () => show(at - 1) }, "Back");
  const next = el("button", { type: "button", id: "tour-next", onclick: () => void onwards() }, "Next");
  const close = el("button", { type: "button", class: "small", id: "tour-end", onclick: () => end() }, "End the tour");
  const ending = el("div", { class: "buttons" });
  put(root, head, body, go, line, found, el("div", { class: "buttons" }, back, next, close), ending);
  let origin = { vm: "", view: "" }; // where one was before

  function show(step) {
    if (root.hidden) origin = { vm: url.get("vm"), view: url.get("view") };
    at = Math.max(0, Math.min(STEPS.length - 1, Number.isFinite(step) ? step : 0));
    root.hidden = false;
    put(ending);
    for (const part of [go, next, close]) part.hidden = false;
    document.body.classList.add("touring");
    url.write({ tour: at + 1, vm: VM, view: STEPS[at].view, episode: "", step: "" });
    say(head, `${at + 1} of ${STEPS.length}: ${STEPS[at].title}`);
    put(body, STEPS[at].text.map((text) => el("p", {}, text)));
    say(go, STEPS[at].do);
    back.hidden = at === 0;
    head.focus();
    tell();
  }

  /** Next does the step first, if nobody has: whoever only ever clicks Next has seen everything. */
  async function onwards() {
    if (busy) return;
    if (STEPS[at].seen(app.store.vms.get(VM), memo) === null) await perform();
    else if (at + 1 < STEPS.length) show(at + 1);
    else finish();
  }

  /** The last page: back to where one was, and the offer to clean up. */
  function finish() {
    at = STEPS.length;
    say(head, "That was the tour");
    put(body, el("p", {}, "The VM tour still runs, three vCPUs and their memory. It is yours to play with, or goes now."));
    put(ending, el("button", { type: "button", class: "primary", id: "tour-remove", onclick: () => (end(), void app.runner.discard(VM)) }, "Remove it and go back"),
      el("button", { type: "button", id: "tour-keep", onclick: () => end() }, "Keep it"));
    for (const part of [go, back, next, close]) part.hidden = true;
    for (const part of [found, line]) say(part, "");
    head.focus();
  }

  async function perform() {
    if (busy) return;
    busy = true;
    app.select(VM);
    try {
      await ready(at);
      await STEPS[at].run(app, memo);
    } catch (error) {
      app.announce(`The step could not be done: ${error}`); // the server may have gone; the tour stays
    } finally {
      busy = false;
    }
    tell();
  }

  /** Whoever jumps into the middle gets what the earlier steps would have made. */
  async function ready(step) {
    const vm = app.store.vms.get(VM);
    if (step > 0 && !vm?.slots.length) await STEPS[0].run(app, memo);
    if (step > 1 && !app.store.vms.get(VM)?.running) await STEPS[1].run(app, memo);
  }

  function tell() {
    if (at < 0 || at >= STEPS.length || root.hidden) return;
    const vm = app.store.vms.get(VM);
    const result = STEPS[at].seen(vm, memo);
    say(found, result ?? "");
    next.classList.toggle("primary", result !== null && !busy);
    next.setAttribute("aria-disabled", String(busy));
    say(next, at + 1 === STEPS.length && result !== null ? "Finish" : "Next");
    go.setAttribute("aria-disabled", String(busy));
    const what = action(STEPS[at].action);
    const requests = vm && !what.can(vm, { ...app.form, ...ROUNDS }) ? what.requests(vm, { ...app.form, ...ROUNDS }) : [];
    say(line, requests.length ? `${curl(requests[0])}${requests.length > 1 ? ` … ${requests.length} calls` : ""}` : "");
  }

  function end() {
    root.hidden = true;
    at = -1;
    document.body.classList.remove("touring");
    url.write({ tour: "", ...(origin.vm === VM ? { vm: "" } : origin), episode: "", step: "" });
    /** @type {HTMLElement|null} */ (document.querySelector("#open-tour"))?.focus();
  }

  app.frame.slow.add(tell);
  return { show };
}
