/** Performs actions: sends their requests in order and says what came of it. */

import { complaint, send } from "../live/api.js";
import { STORY, action, pathOf } from "./actions.js";

const PARALLEL = 4; // requests at a time where the order does not matter
const SOON_MS = 60;
const SLOTS = /^(merge|split|rounds)-/;
const UNORDERED = new Set(["start", "stop", "wake"]);

export class Runner {
  /**
   * @param {import("../model/store.js").Store} store
   * @param {import("../live/live.js").Live} live
   * @param {import("./actions.js").Form} form
   * @param {{select: (id: string) => void, said: (text: string, ok: boolean) => void}} page
   */
  constructor(store, live, form, page) {
    this.store = store;
    this.live = live;
    this.form = form;
    this.page = page;
    /** @type {Map<string, {text: string, ok: boolean, busy: boolean}>} by action: what came of it */
    this.results = new Map();
    this.busy = 0;
    this.selected = ""; // the VM of the address
  }

  /**
   * Perform an action on a VM; false if it was refused.
   * @param {string} id
   * @param {{vm?: string, form?: Partial<import("./actions.js").Form>}} [options]
   */
  async run(id, { vm: name = this.current, form = {} } = {}) {
    const what = action(id);
    const asked = { ...this.form, ...form };
    if (id !== "create") await this._current(name);
    const vm = this.store.vms.get(name);
    const obstacle = this._underWay(id) ?? what.can(vm, asked);
    if (obstacle) {
      if (!this.results.get(id)?.busy) this.results.set(id, { text: `${what.label}: ${obstacle}`, ok: false, busy: false });
      this.page.said(`${what.label}: ${obstacle}`, false);
      return false;
    }
    this.results.set(id, { text: "…", ok: true, busy: true });
    this.busy += 1;
    try {
      return await this._perform(what, vm, asked);
    } finally {
      this.busy -= 1;
    }
  }

  /** Two changes of slots at a time would undo each other's assumptions. */
  _underWay(id) {
    const other = [...this.results].find(([known, { busy }]) => busy && (known === id || (SLOTS.test(known) && SLOTS.test(id))));
    return other ? `${action(other[0]).label} is under way` : null;
  }

  /** The VM that actions are about. */
  get current() {
    return this.selected || "default";
  }

  /** @param {import("./actions.js").Action} what */
  async _perform(what, vm, form) {
    const before = { torn: vm?.torn ?? 0 };
    const requests = what.requests(vm, form);
    if (what.id === "delete") await this.live.leave(vm);
    const answers = UNORDERED.has(what.id) ? await this._all(requests) : await this._each(what, vm, form, requests);
    const failed = answers.find((answer) => !answer.ok);
    if (what.vm && !failed) this.page.select(what.vm(form));
    const name = what.vm ? what.vm(form) : vm.id;
    if (what.id !== "delete") await this._known(name);
    else vm.leaving = !failed;
    if (failed) return this._end(what.id, `${what.label}: ${complaint(failed)}`, false);
    if (SLOTS.test(what.id)) await new Promise((resolve) => setTimeout(resolve, SOON_MS)); // torn accesses are counted by events
    return this._end(what.id, what.outcome(answers, before, this.store.vms.get(name)), true);
  }

  async _each(what, vm, form, requests) {
    const answers = [];
    let rest = requests;
    while (rest.length) {
      if (rest.every(({ path }) => path.endsWith("/program"))) return [...answers, ...(await this._all(rest))];
      const answer = await send(rest[0]);
      answers.push(answer);
      if (!answer.ok) break;
      const hva = answer.data?.userspace_addr;
      if (hva && answer.request.path.endsWith("/host-memory")) rest = what.requests(vm, form, Number(hva));
      rest = rest.slice(1);
    }
    return answers;
  }

  async _all(requests) {
    const answers = [];
    for (let at = 0; at < requests.length; at += PARALLEL) {
      answers.push(...(await Promise.all(requests.slice(at, at + PARALLEL).map(send))));
    }
    return answers;
  }

  /** Know a VM as it is now: threads and host addresses come by no event. */
  async _current(name) {
    if (this.store.vms.has(name)) await this.live.refresh(name);
  }

  async _known(name) {
    for (let tries = 0; tries < 50 && !this.store.vms.has(name); tries++) await new Promise((resolve) => setTimeout(resolve, 10));
    await this._current(name);
  }

  _end(id, text, ok) {
    this.results.set(id, { text, ok, busy: false });
    this.page.said(text, ok);
    return ok;
  }

  /** The story's VM from nothing to moving vCPUs; one that exists is taken over as it is. */
  async story(form = {}) {
    const asked = { ...STORY, ...form };
    if (!this.store.vms.has(asked.name) && !(await this.run("create", { form: asked }))) return false;
    const vm = this.store.vms.get(asked.name);
    this.page.select(asked.name);
    if (vm && !vm.slots.length && !(await this.run("load", { vm: asked.name, form: asked }))) return false;
    if (vm?.running) return true;
    if (vm?.kicked && !(await this.run("resume", { vm: asked.name }))) return false; // the server brought it back from its journal
    return this.run("start", { vm: asked.name, form: asked });
  }

  /** Give the VM's threads another behaviour: what runs is stopped and started again. */
  async behave(behaviour) {
    this.form.behaviour = behaviour;
    return (await this.run("stop")) && this.run("start", { form: { watched: this.current === STORY.name } });
  }

  /** Get rid of a VM without a question; nothing happens if there is none. */
  async discard(name) {
    const vm = this.store.vms.get(name);
    if (!vm) return;
    await this.live.leave(vm);
    vm.leaving = (await send({ method: "DELETE", path: pathOf(name) })).ok;
    for (let tries = 0; tries < 40 && this.store.vms.has(name); tries++) await new Promise((resolve) => setTimeout(resolve, 25));
  }
}
