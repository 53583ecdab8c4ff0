/** What is behind More: many changes, guests, new machines, and the end of one. */

import { GUESTS, guestOf } from "../model/guests.js";
import { el, fill, put, say } from "../page/dom.js";
import { plainly, protectable } from "./actions.js";

/** @type {[string, string, import("./actions.js").Button[]][]} name, fields and buttons of a group */
const MORE = [
  ["Many changes", "memory", [["rounds", protectable("rounds")]]],
  ["Guest", "guest", ["load", "start", "stop", "wake"].map(plainly)],
  ["New machine", "create", [plainly("create")]],
  ["End", "end", [plainly("delete")]],
];

/** Fill the element; returns what keeps the fields up to date. */
export function more(root, app, row, changed) {
  const fields = fieldsOf(app, changed);
  fill(root, MORE.map(([name, id, buttons]) => el("section", { class: "group", "aria-label": name }, el("h2", {}, name), fields[id] ?? null, buttons.map(row))));
  void app.info.then((info) => info && fields.offer(info));
  return fields;
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
