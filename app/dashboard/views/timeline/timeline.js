/** The lanes, with what a kick is doing as bands. Pausing stops the view, never the VM. */

import { title } from "../../model/asking.js";
import { palette } from "../../model/states.js";
import { el, fitted, put, say, sync } from "../../page/dom.js";
import { duration } from "../../page/format.js";
import * as url from "../../page/url.js";
import { drawAxis, drawCursor, drawGaps, drawNames, drawTorn } from "./axes.js";
import { drawBands, drawCounts, drawLanes } from "./lanes.js";

const LEFT = 64;
const TOP = 44;
const AXIS = 22;
const LANES = 128; // beyond, the states are counted
const GROUP = 32;
const SPANS = [1e4, 1e10];

/** The panel of steps, which is fetched when somebody first chooses an episode. */
function later(app, options) {
  const node = el("div", { hidden: true });
  let panel = null;
  return {
    node,
    async pick(episode) {
      if (!panel && episode) {
        const { steps } = await import("./steps.js");
        panel ??= steps(app, options);
        put(node, panel.node);
        node.hidden = false;
      }
      panel?.pick(episode);
      panel?.tell();
    },
    go: (by) => panel?.go(by),
    tell: () => panel?.tell(),
  };
}

export function timeline(root, app, { compact = false } = {}) {
  const canvas = el("canvas", { class: "lanes", tabindex: 0, role: "img" });
  const pauseButton = el("button", { type: "button", id: compact ? false : "pause", class: "small", "aria-pressed": "false", onclick: () => (paused ? resume() : pause()) }, "Pause the view");
  const lanes = el("select", { "aria-label": "Lanes", hidden: true, onchange: () => url.write({ lanes: lanes.value }) });
  const word = el("span", { class: "about" });
  const chosen = el("select", { id: compact ? "episode-small" : "episode", "aria-label": "Kick or slot change", onchange: () => pick(Number(chosen.value)) });
  const panel = later(app, { shown, compact });
  put(root,
    el("div", { class: "tools" }, pauseButton,
      el("button", { type: "button", class: "small", "aria-label": "Zoom in", onclick: () => zoom(0.5) }, "+"),
      el("button", { type: "button", class: "small", "aria-label": "Zoom out", onclick: () => zoom(2) }, "−"),
      lanes, el("label", {}, "Go through ", chosen), word),
    canvas, panel.node);
  let colours = palette();
  let span = Number(url.get("span")) || 4e9;
  let paused = null; // what the view shows while it is paused: { vm, end, changes, states, now }
  let hits = [];
  let drag = null;
  let skip = 0;

  function draw() {
    const vm = app.vm();
    if (paused && paused.vm !== vm) resume(); // another VM is looked at, or one of the same name
    if (skip > 0) return void (skip -= 1);
    const began = performance.now();
    const total = paused?.states.length ?? vm?.count ?? 0;
    const many = total > LANES && !lanes.value;
    const first = many ? 0 : Number(lanes.value || 0);
    const count = many ? total : Math.min(total - first, total > LANES ? GROUP : total);
    const tall = compact ? Math.max(8, Math.min(26, 150 / Math.max(1, count))) : Math.max(10, Math.min(34, 420 / Math.max(1, count)));
    const high = many ? 200 : Math.max(60, count * tall);
    canvas.style.height = `${TOP + high + AXIS}px`;
    const surface = fitted(canvas);
    if (!surface) return;
    const { context, width, height } = surface;
    context.clearRect(0, 0, width, height);
    if (!vm) return;
    const now = paused?.now ?? app.live.now;
    const end = paused?.end ?? now;
    const stage = { context, left: LEFT, right: width - 6, top: TOP, start: end - span, end, colours };
    const changes = paused?.changes ?? vm.changes;
    const states = paused?.states ?? vm.state.subarray(0, vm.count);
    drawGaps(stage, TOP + high, app.store.gaps, now);
    hits = drawBands(stage, vm.episodes, TOP + high, now, 18);
    if (many) drawCounts(stage, changes, states, high, now);
    else drawLanes(stage, changes, states, { first, count, tall }, now);
    drawNames(stage, vm, first, many ? 0 : count, tall);
    if (!many) drawTorn(stage, vm, first, count, tall);
    drawAxis(stage, TOP + high, app.cursor?.episode.start ?? now, app.cursor ? "start" : "now");
    if (app.cursor) drawCursor(stage, TOP + high, app.cursor.record.data.t_ns);
    skip = Math.floor((performance.now() - began) / 2.5); // a costly drawing comes less often
  }

  function tell() {
    const vm = app.vm();
    const episodes = vm?.episodes.slice(-40).reverse() ?? [];
    if (document.activeElement !== chosen) {
      sync(chosen, [{ number: 0 }, ...episodes], ({ number }) => number, () => el("option"), (node, episode) => {
        node.value = String(episode.number);
        say(node, episode.number ? title(episode) : episodes.length ? "– choose –" : "nothing yet: kick, or merge slots");
      });
      chosen.value = String(app.cursor?.episode.number ?? 0);
    }
    lanes.hidden = !vm || vm.count <= LANES;
    if (!lanes.hidden && lanes.childElementCount !== 1 + Math.ceil(vm.count / GROUP)) groups(vm);
    say(word, `${duration(span)} wide${paused ? ", paused: the VM goes on" : ""}`);
    pauseButton.setAttribute("aria-pressed", String(Boolean(paused)));
    say(pauseButton, paused ? "Back to now" : "Pause the view");
    canvas.setAttribute("aria-label", `${vm ? `The last ${duration(span)} of ${vm.count} vCPUs` : "No VM"}${paused ? ", paused" : ""}. Left and right arrows go through the chosen kick.`);
    panel.tell();
  }

  function groups(vm) {
    const options = Array.from({ length: Math.ceil(vm.count / GROUP) }, (_, n) => el("option", { value: String(n * GROUP) }, `vCPUs ${n * GROUP} to ${Math.min(vm.count, (n + 1) * GROUP) - 1}`));
    put(lanes, el("option", { value: "" }, "all, counted"), options);
    lanes.value = url.get("lanes");
  }

  /** Stop the view at a time. */
  function pause(end = app.live.now) {
    const vm = app.vm();
    if (!vm) return;
    paused = { vm, end, now: Math.max(end, app.live.now), changes: vm.changes.copy(), states: vm.state.slice(0, vm.count) };
    skip = 0;
    tell();
  }

  function resume() {
    paused = null;
    app.cursor = null;
    span = Number(url.get("span")) || 4e9;
    url.write({ episode: "", step: "" });
    void panel.pick(null);
    tell();
  }

  function zoom(factor, centre = null) {
    const next = Math.min(SPANS[1], Math.max(SPANS[0], span * factor));
    if (paused) paused.end += ((centre ?? paused.end - span / 2) - (paused.end - span / 2)) * (1 - next / span) + (next - span) / 2;
    span = next;
    skip = 0;
    if (!app.cursor) url.write({ span: Math.round(span) });
  }

  function pick(number) {
    const episode = app.vm()?.episodes.find((known) => known.number === number);
    if (!episode) return resume();
    const drained = episode.completed !== null && episode.requested !== null ? episode.completed - episode.requested : null;
    const whole = (episode.resumed ?? episode.end ?? app.live.now) - episode.start;
    const focus = drained !== null && whole > 40 * drained ? 3 * drained : whole;
    span = Math.max(SPANS[0], focus * 1.4);
    pause(episode.start + span * 0.85);
    void panel.pick(episode);
  }

  /** The steps have come to an event: make sure that it is in view. */
  function shown(record) {
    if (!paused) return;
    const t = record.data.t_ns;
    if (t < paused.end - span * 0.95 || t > paused.end - span * 0.05) paused.end = t + span * 0.5;
    skip = 0;
  }

  const timeAt = (x) => (paused?.end ?? app.live.now) - span + ((x - LEFT) / (canvas.clientWidth - 6 - LEFT)) * span;
  canvas.addEventListener("pointerdown", (event) => (drag = { x: event.offsetX, t: timeAt(event.offsetX) }));
  canvas.addEventListener("pointerup", (event) => {
    if (!drag) return;
    const wide = Math.abs(event.offsetX - drag.x);
    if (wide > 12) {
      const [from, to] = [drag.t, timeAt(event.offsetX)].sort((a, b) => a - b);
      span = Math.max(SPANS[0], to - from);
      pause(to);
    } else {
      const hit = hits.findLast(({ from, to }) => event.offsetX >= from - 4 && event.offsetX <= to + 4);
      if (hit) pick(hit.episode.number);
    }
    drag = null;
  });
  canvas.addEventListener("dblclick", resume);
  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.shiftKey) return; // plain scrolling is the page's
    event.preventDefault();
    zoom(event.deltaY > 0 ? 1.25 : 0.8, timeAt(event.offsetX));
  }, { passive: false });
  root.addEventListener("keydown", (event) => {
    if (event.target instanceof HTMLSelectElement) return;
    const act = { ArrowRight: () => panel.go(1), ArrowLeft: () => panel.go(-1), "+": () => zoom(0.5), "-": () => zoom(2), Home: () => panel.go(-Infinity), End: () => panel.go(Infinity) }[event.key];
    if (act) act();
    else if (event.key === " " && event.target === canvas) paused ? resume() : pause();
    else return;
    event.preventDefault();
  });
  const themes = ["(prefers-color-scheme: dark)", "(forced-colors: active)"].map((query) => matchMedia(query));
  const again = () => (colours = palette());
  themes.forEach((theme) => theme.addEventListener("change", again));
  app.frame.fast.add(draw);
  app.frame.slow.add(tell);
  const wanted = Number(url.get("episode"));
  if (wanted) setTimeout(() => pick(wanted), 300);
  app.pickEpisode = pick;
  return () => {
    app.frame.fast.delete(draw);
    app.frame.slow.delete(tell);
    themes.forEach((theme) => theme.removeEventListener("change", again));
    app.cursor = null;
  };
}
