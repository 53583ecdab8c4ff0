/** The panel of buttons. Under each: what it will send, as curl. */

import { action, summary } from "./actions.js";
import { copy, curl } from "./curl.js";
import { el, put, say } from "./dom.js";
import { GUESTS, guestOf } from "./guests.js";

const SHOWN = 12; // requests of one action that are spelled out

const GROUPS = [
  ["Kick", "kick", ["kick", "resume"]],
  ["Memory slots", "memory", ["merge-none", "merge-kick", "split-none", "split-kick", "rounds-none", "rounds-kick"]],
  ["Guest", "guest", ["load", "start", "stop", "wake"]],
  ["New machine", "create", ["create"]],
  ["End", "end", ["delete"]],
];

/** @param {Element} root @param {any} app */
export function controls(root, app) {
  /** @type {Map<string, any>} */
  const rows = new Map();
  const fields = fieldsOf(app, () => update());
  const sections = GROUPS.map(([name, id, actions]) => {
    const buttons = actions.map((name) => rowOf(app, name, rows));
    if (id === "create") return el("details", { class: "group" }, el("summary", {}, name), fields.create, buttons);
    return el("section", { class: "group", "aria-label": name }, el("h2", {}, name), fields[id] ?? null, buttons);
  });
  put(root, sections);

  function update() {
    if (root.matches(":active")) return; // a button that moved away under a pressed pointer would not be clicked
    const vm = app.vm();
    fields.update();
    for (const [id, row] of rows) row.update(vm, action(id));
  }
  app.frame.slow.add(update);
  void app.info.then((info) => info && fields.offer(info));
}

/** A button, what came of it, and its curl. */
function rowOf(app, id, rows) {
  const what = action(id);
  const key = what.key ? el("kbd", {}, what.key) : null;
  const button = el("button", { type: "button", id: `do-${id}`, class: what.danger ? "danger" : false, "aria-describedby": `about-${id}`, onclick: () => press(app, what) }, what.label, key);
  const about = el("p", { class: "about", id: `about-${id}` }, what.about);
  const result = el("p", { class: "result", hidden: true });
  const line = el("span", { class: "line" });
  const code = el("pre", { tabindex: 0, "aria-label": `${what.label} as curl` });
  const copied = el("button", { type: "button", class: "small", onclick: () => copyCode() }, "Copy");
  const details = el("details", { class: "curl", ontoggle: () => details.open && fillCode() }, el("summary", {}, el("b", {}, "curl"), el("span", { class: "unseen" }, ` for ${what.label}: `), " ", line), code, copied);
  let requests = [];

  function fillCode() {
    const lines = requests.slice(0, SHOWN).map((request) => curl(request));
    if (requests.length > SHOWN) lines.push(`# and ${requests.length - SHOWN} more of the kind`);
    say(code, lines.length ? lines.join("\n") : "# nothing to send now");
  }
  async function copyCode() {
    say(copied, (await copy(requests.map((request) => curl(request)).join("\n"))) ? "Copied" : "Select and copy by hand");
    setTimeout(() => say(copied, "Copy"), 1500);
  }
  rows.set(id, {
    update(vm) {
      const obstacle = what.can(vm, app.form);
      const outcome = app.runner.results.get(id);
      // A disabled button could not be reached by keyboard to learn why.
      button.setAttribute("aria-disabled", String(Boolean(obstacle) || Boolean(outcome?.busy)));
      say(about, obstacle ? `${what.about}. Not now: ${obstacle}.` : what.about);
      requests = obstacle ? [] : what.requests(vm, app.form);
      say(line, obstacle ? "" : requests.length === 1 ? curl(requests[0], "") : summary(requests));
      if (details.open) fillCode();
      result.hidden = !outcome;
      if (outcome) {
        say(result, outcome.text);
        result.className = `result ${outcome.ok ? "good" : "bad"}`;
      }
    },
  });
  return el("div", { class: "action" }, button, about, result, details);
}

function press(app, what) {
  if (what.danger && !confirm(`${what.label} "${app.runner.current}"? ${what.about}.`)) return;
  void app.runner.run(what.id);
}

/** The inputs, group by group. */
function fieldsOf(app, changed) {
  const { form } = app;
  const input = (name, label, props) => {
    const node = el("input", { ...props, value: form[name], oninput: () => take(name, node) });
    return [el("label", {}, label, node), node];
  };
  const select = (name, label, options) => {
    const node = el("select", { onchange: () => take(name, node) }, options.map((option) => el("option", { value: option.name ?? option }, option.label ?? option.name ?? option)));
    node.value = form[name];
    return [el("label", {}, label, node), node];
  };
  const take = (name, node) => {
    form[name] = node.type === "number" ? Math.max(1, Math.min(1024, Number(node.value) || 1)) : node.type === "checkbox" ? node.checked : node.value;
    changed();
  };
  const [name] = input("name", "Name", { autocomplete: "off", spellcheck: "false", maxlength: 64 });
  const [vcpus] = input("vcpus", "vCPUs", { type: "number", min: 1, max: 1024 });
  const [variant, variants] = select("variant", "Variant", [form.variant]);
  const [engine, engines] = select("engine", "Engine", [form.engine]);
  const chip = el("input", { type: "checkbox", onchange: () => take("irqchip", chip) });
  chip.checked = form.irqchip;
  const about = el("p", { class: "about" });
  const [guest] = select("guest", "Example", GUESTS);
  const listing = el("pre", { tabindex: 0, "aria-label": "What the first vCPU executes" });
  const [behaviour] = select("behaviour", "Userspace", [
    { name: "careless", label: "careless: calls KVM_RUN again at once" },
    { name: "well", label: "well-behaved: waits for the resume" },
  ]);
  const [rounds] = input("rounds", "Rounds", { type: "number", min: 1, max: 200 });
  let summaries = {};

  return {
    create: el("div", { class: "fields" }, name, vcpus, variant, about, engine, el("label", { class: "check" }, chip, "interrupt controller: HLT sleeps inside KVM_RUN")),
    guest: el("div", { class: "fields" }, guest, el("details", {}, el("summary", {}, "What it executes"), listing), behaviour),
    memory: el("div", { class: "fields" }, rounds),
    offer(info) {
      summaries = Object.fromEntries(info.variants.map(({ name, summary }) => [name, summary]));
      put(variants, info.variants.map(({ name }) => el("option", { value: name }, name)));
      put(engines, info.engines.map(({ name, available, reason }) => el("option", { value: name, disabled: !available }, available ? labels[name] ?? name : `${name}: ${reason}`)));
      variants.value = form.variant;
      engines.value = form.engine;
    },
    update() {
      say(about, summaries[form.variant] ?? "");
      const kind = guestOf(form.guest, 0);
      say(listing, app.vm()?.engine === "x86" ? kind.listing : JSON.stringify(kind.steps));
    },
  };
}

const labels = { script: "script: a list of steps", x86: "x86: real machine code", kvm: "kvm: the real /dev/kvm" };
