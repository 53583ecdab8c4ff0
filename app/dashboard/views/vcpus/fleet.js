/**
 * The fleet: one cell for each vCPU, with colour, glyph and, where there is room, words.
 *
 * Only cells that changed are drawn. The table is this view for those who cannot see it.
 */

import { STATES, glyph, glyphs, palette } from "../../model/states.js";
import { pending } from "../../model/vm.js";
import { el, fitted, put, say } from "../../page/dom.js";
import { count, plural } from "../../page/format.js";
import { BIG, SMALL, arrange, placeOfGlyph } from "./cells.js";

const FLASH_NS = 350e6;
const RED_NS = 600e6; // how long a cell is red after it met a hole
const GAP = 4;

export function fleet(root, app, { compact = false } = {}) {
  const canvas = el("canvas", { class: "grid", tabindex: 0, role: "img" });
  const legend = el("ul", { class: "legend" });
  const counts = STATES.map((state, code) => {
    const number = el("b", {}, "0");
    legend.append(el("li", { title: state.meaning }, glyph(code), state.label, " ", number));
    return number;
  });
  const panel = { node: el("div"), show: (vm, i) => void (vm && fetchPanel(), i) };
  let fetching = false;

  /** What can be done with one vCPU, fetched when somebody first asks. */
  async function fetchPanel() {
    if (fetching) return;
    fetching = true;
    const made = (await import("./vcpu.js")).vcpuPanel(app);
    put(panel.node, made.node);
    panel.show = made.show;
  }
  const empty = el("p", { class: "empty" });
  put(root, empty, canvas, legend, panel.node);
  let layout = null;
  let colours = palette();
  /** @type {Map<number, HTMLCanvasElement>} */
  let sprites = new Map();
  let drawn = { vm: null, count: 0, key: "" };
  let chosen = 0;
  let asked = !compact; // in the overview a vCPU is described once somebody asks

  function draw() {
    const vm = app.vm();
    if (!vm?.count) return;
    const surface = place(vm);
    if (!surface) return;
    const key = `${surface.width}x${surface.height}x${vm.count}x${chosen}x${app.live.stale}`;
    const all = drawn.vm !== vm || drawn.key !== key || surface.changed;
    if (all) surface.context.clearRect(0, 0, surface.width, surface.height);
    drawn = { vm, count: vm.count, key };
    const now = app.live.now;
    for (let i = 0; i < vm.count; i++) {
      const flashing = now - vm.tornAt[i] < RED_NS + 50e6 || (layout.cell >= BIG && now - vm.pulse[i] < FLASH_NS + 50e6);
      if (!all && !vm.touched[i] && !flashing) continue;
      vm.touched[i] = 0;
      cell(surface.context, vm, i, now);
    }
  }

  /** Choose a cell size that shows all vCPUs, and size the canvas. */
  function place(vm) {
    const width = root.clientWidth;
    if (!width) return null;
    const high = compact ? 216 : Math.max(320, innerHeight * 0.6);
    if (!layout || layout.count !== vm.count || layout.width !== width || layout.high !== high) {
      layout = arrange(vm.count, width, high);
      canvas.style.height = `${layout.rows * layout.tall}px`;
      sprites = new Map();
      drawn.vm = null;
    }
    return fitted(canvas);
  }

  function cell(context, vm, i, now) {
    const { cell: wide, tall, columns } = layout;
    const x = (i % columns) * wide;
    const y = Math.floor(i / columns) * tall;
    context.clearRect(x, y, wide, tall);
    const kicked = pending(vm.requests[i]);
    const red = vm.tornAt[i] > 0 && now - vm.tornAt[i] < RED_NS;
    context.drawImage(sprite(vm.state[i], kicked, red), x, y, wide, tall);
    if (wide >= BIG) words(context, vm, i, x, y, now, red);
    else if (wide >= SMALL) number(context, vm, i, x, y);
    if (vm.fresh[i] && wide < BIG) badge(context, x + wide - 11, y + tall - 11, 6);
    if (i === chosen && document.activeElement === canvas) outline(context, x, y, wide, tall);
  }

  function ink(code) {
    return STATES[code].name === "kernel" ? colours["on-dark"] : colours["on-state"];
  }

  function words(context, vm, i, x, y, now, red) {
    const { cell: wide, tall } = layout;
    context.fillStyle = red ? colours["on-dark"] : ink(vm.state[i]);
    context.font = "600 16px system-ui, sans-serif";
    context.fillText(`vCPU ${vm.ids[i]}`, x + 36, y + 24);
    context.font = "14px system-ui, sans-serif";
    context.fillText(STATES[vm.state[i]].label, x + 36, y + 42);
    const line = vm.eintr[i] ? `${count(vm.eintr[i])} EINTR` : vm.lastExit[i] ? vm.lastExit[i].replace("KVM_EXIT_", "") : "";
    context.fillText(plural(vm.exits[i], "exit"), x + 12, y + tall - 34);
    context.fillText(line, x + 12, y + tall - 18);
    const left = vm.pulse[i] ? 1 - (now - vm.pulse[i]) / FLASH_NS : 0;
    if (left > 0 && left <= 1) context.fillRect(x + 12, y + tall - GAP - 7, (wide - 28) * left, 3);
    if (!vm.fresh[i]) return;
    const holes = plural(vm.fresh[i], "hole");
    context.fillText(holes, x + wide - 36 - context.measureText(holes).width, y + tall - 18);
    badge(context, x + wide - 30, y + tall - 31, 16);
  }

  function number(context, vm, i, x, y) {
    context.fillStyle = ink(vm.state[i]);
    context.font = "12px system-ui, sans-serif";
    context.fillText(String(vm.ids[i]), x + 4, y + layout.tall - 7);
  }

  function badge(context, x, y, size) {
    context.fillStyle = colours.torn;
    context.fillRect(x, y, size, size);
    context.strokeStyle = colours["on-dark"];
    context.lineWidth = size / 7;
    context.beginPath();
    const inset = size / 4;
    context.moveTo(x + inset, y + inset);
    context.lineTo(x + size - inset, y + size - inset);
    context.moveTo(x + size - inset, y + inset);
    context.lineTo(x + inset, y + size - inset);
    context.stroke();
  }

  function outline(context, x, y, wide, tall) {
    context.strokeStyle = colours.ink;
    context.lineWidth = 2;
    context.strokeRect(x + 1, y + 1, wide - 2, tall - 2);
  }

  /** A cell's background and glyph, drawn once for each state. */
  function sprite(code, kicked, red) {
    const key = code * 4 + Number(kicked) * 2 + Number(red);
    const known = sprites.get(key);
    if (known) return known;
    const { cell: wide, tall } = layout;
    const ratio = Math.min(devicePixelRatio || 1, 2);
    const made = document.createElement("canvas");
    made.width = Math.round(wide * ratio);
    made.height = Math.round(tall * ratio);
    const context = made.getContext("2d");
    context.scale(ratio, ratio);
    const gap = wide < SMALL ? 1.5 : GAP;
    context.fillStyle = red ? colours.torn : colours[STATES[code].name];
    context.strokeStyle = colours.ink;
    context.lineWidth = colours.panel === "Canvas" ? 1 : 0.0001;
    context.beginPath();
    context.roundRect(gap / 2, gap / 2, wide - gap, tall - gap, wide < SMALL ? 2 : 7);
    context.fill();
    context.stroke();
    const { x, y, size } = placeOfGlyph(wide, tall);
    context.save();
    context.translate(x, y);
    context.scale(size / 24, size / 24);
    context.fillStyle = red ? colours["on-dark"] : ink(code);
    context.fill(glyphs()[code], "evenodd");
    context.restore();
    if (kicked) dot(context, wide, gap);
    sprites.set(key, made);
    return made;
  }

  function dot(context, wide, gap) {
    const radius = Math.max(2.2, Math.min(6, wide / 9));
    context.beginPath();
    context.arc(wide - gap - radius - 1.5, gap + radius + 1, radius, 0, 7);
    context.fillStyle = colours.panel;
    context.fill();
    context.lineWidth = Math.max(1, radius / 2.4);
    context.strokeStyle = colours.ink;
    context.stroke();
  }

  function tell() {
    const vm = app.vm();
    const none = !vm?.count;
    canvas.hidden = legend.hidden = none;
    empty.hidden = !none;
    say(empty, vm ? "This VM has no vCPU yet: POST /vcpu creates one." : "There is no such VM. Create one in the panel of controls.");
    if (none) return panel.show(null, 0);
    const tally = vm.tally();
    tally.forEach((number, code) => say(counts[code], count(number)));
    const words = tally.map((number, code) => (number ? `${number} ${STATES[code].label}` : "")).filter(Boolean).join(", ");
    canvas.setAttribute("aria-label", `${plural(vm.count, "vCPU")} of ${vm.id}: ${words}. The table view lists them; arrow keys choose one.`);
    chosen = Math.min(chosen, vm.count - 1);
    panel.show(asked ? vm : null, chosen);
  }

  function choose(i) {
    const vm = app.vm();
    if (!vm?.count) return;
    chosen = Math.max(0, Math.min(vm.count - 1, i));
    asked = true;
    drawn.vm = null;
    app.announce(`vCPU ${vm.ids[chosen]}, ${STATES[vm.state[chosen]].label}`);
  }

  canvas.addEventListener("click", (event) => {
    if (layout) choose(Math.floor(event.offsetY / layout.tall) * layout.columns + Math.min(layout.columns - 1, Math.floor(event.offsetX / layout.cell)));
  });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: layout?.columns, ArrowUp: -(layout?.columns ?? 0) }[event.key];
    if (!step) return;
    event.preventDefault();
    choose(chosen + step);
  });
  const again = () => {
    colours = palette();
    sprites = new Map();
    drawn.vm = null;
  };
  const themes = ["(prefers-color-scheme: dark)", "(forced-colors: active)"].map((query) => matchMedia(query));
  for (const event of ["focus", "blur"]) canvas.addEventListener(event, again);
  themes.forEach((theme) => theme.addEventListener("change", again));
  app.frame.fast.add(draw);
  app.frame.slow.add(tell);
  tell();
  return () => {
    app.frame.fast.delete(draw);
    app.frame.slow.delete(tell);
    themes.forEach((theme) => theme.removeEventListener("change", again));
  };
}
