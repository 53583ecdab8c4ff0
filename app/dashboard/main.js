/**
 * Puts the page together: state, stream, controls, and the view that the URL names.
 *
 * Rooms, each knowing those before it: page, model, live, controls, story, views.
 */

import { STORY } from "./controls/actions.js";
import { controls } from "./controls/controls.js";
import { Runner } from "./controls/runner.js";
import { install as installKeys } from "./keys.js";
import { get } from "./live/api.js";
import { connection } from "./live/connection.js";
import { Live } from "./live/live.js";
import { STATES } from "./model/states.js";
import { Store } from "./model/store.js";
import { el, put, say, sync } from "./page/dom.js";
import { Frame } from "./page/frame.js";
import * as url from "./page/url.js";
import { notices } from "./story/notices.js";
import { begin } from "./story/story.js";
import { warningsBadge } from "./views/badge.js";
import { MOVED, VIEWS, load, viewOf } from "./views/index.js";

const ANNOUNCE_MS = 1000;
const ASK_AGAIN_MS = 2000;

const store = new Store();
const frame = new Frame();
const live = new Live(store, frame);
const form = { ...STORY, watched: false }; // what somebody starts by hand runs until it is stopped
const runner = new Runner(store, live, form, { select, said });
const app = {
  store, frame, live, runner, form,
  /** The episode and step that timeline, semaphore and memory show together; null: now. */
  cursor: null,
  /** A view or a VM that the address names and that there is not. */
  strange: { view: "", vm: "" },
  info: Promise.resolve(null),
  /** The past and the present are known, and the view is there. */
  ready: false,
  vm: () => store.vms.get(runner.current),
  select,
  announce: (text) => (announcement = text),
  startTour,
  open: (view, more = {}) => url.write({ view, ...more }, { step: true }),
};
let announcement = "";
let shown = { name: "", stop: () => {} };

function select(id) {
  url.write({ vm: id });
}

function said(text) {
  announcement = text;
}

/** Show the view that the URL names. */
async function route() {
  const wanted = url.read();
  if (MOVED[wanted.view]) return url.write(MOVED[wanted.view]);
  app.strange = { view: wanted.view && !viewOf(wanted.view) ? wanted.view : "", vm: wanted.vm ?? "" };
  const view = viewOf(wanted.view) ?? VIEWS[0];
  if ((wanted.vm ?? "") !== runner.selected) {
    app.cursor = null;
    runner.selected = wanted.vm ?? "";
    void live.refresh(runner.current); // events do not tell of threads
  }
  if (shown.name === view.name) return;
  shown.stop();
  shown = { name: view.name, stop: () => {} };
  const show = await load(view).catch(() => null); // the server may be away: it is asked again
  if (shown.name !== view.name) return; // somebody was faster
  if (!show) {
    shown.name = "";
    return void setTimeout(route, ASK_AGAIN_MS);
  }
  scrollTo(0, 0);
  const main = document.querySelector("#main");
  put(main, el("h2", { class: view.name === "overview" ? "unseen" : false }, view.label), el("p", { class: "lead" }, view.lead));
  const body = el("div", { class: `view ${view.name}` });
  main.append(body);
  document.title = `${view.label} – Kickstand`;
  shown = { name: view.name, stop: show(body, app) };
  for (const link of document.querySelectorAll("header a[data-view]")) {
    const current = link.getAttribute("data-view") === view.name;
    if (current) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

let touring = null;

/** Begin the tour, which is fetched when it is first wanted. */
async function startTour(step = 0) {
  const { tour } = await import("./story/tour.js");
  touring ??= tour(document.querySelector("#tour"), app);
  touring.show(step);
}

function header() {
  const links = VIEWS.map((view, n) => el("a", { href: `#view=${view.name}`, "data-view": view.name, title: `key ${n + 1}`, onclick: (event) => {
    event.preventDefault();
    app.open(view.name);
  } }, view.label));
  put(document.querySelector("#views"), links);
  const chosen = el("select", { id: "vm", onchange: () => select(chosen.value) });
  const facts = el("span", { class: "facts" });
  warningsBadge(document.querySelector("#warnings"), app);
  put(document.querySelector("#machine"), el("label", {}, el("span", { class: "unseen" }, "Virtual machine"), chosen), facts);
  frame.slow.add(() => {
    const ids = [...store.vms.keys()];
    if (!ids.includes(runner.current)) ids.push(runner.current);
    sync(chosen, ids, (id) => id, (id) => el("option", { value: id }, id));
    if (chosen.value !== runner.current && document.activeElement !== chosen) chosen.value = runner.current;
    const vm = app.vm();
    say(facts, store.epoch === null ? "" : vm ? `${vm.variant} · ${vm.engine} · ${vm.kicked ? "kicked" : "open"}` : "there is no such VM");
    facts.classList.toggle("kicked", Boolean(vm?.kicked));
    for (const link of links) link.href = url.link({ view: link.dataset.view });
  });
}

/** Tell readers of the page what happens, once a second at most, and only if it is worth a sentence. */
function speak() {
  const node = document.querySelector("#live");
  let before = "";
  setInterval(() => {
    const vm = app.vm();
    const torn = vm?.torn ? `, ${vm.torn} holes seen` : "";
    const state = vm ? `${vm.id} ${vm.kicked ? "kicked" : "open"}${torn}` : "";
    if (announcement || state !== before) {
      const tally = vm ? vm.tally().map((number, code) => (number ? `${number} ${STATES[code].label}` : "")).filter(Boolean).join(", ") : "";
      say(node, [announcement, state !== before ? `${state}: ${tally}` : ""].filter(Boolean).join(". "));
    }
    announcement = "";
    before = state;
  }, ANNOUNCE_MS);
}

async function start() {
  const coded = url.get("code") !== "" && (await import("./live/session.js"));
  const admitted = !coded || (await coded.exchangeCode());
  const address = location.hash;
  header();
  connection(document.querySelector("#connection"), app);
  await live.start();
  if (live.status === "refused") {
    const { login } = await import("./live/session.js");
    return login(document.querySelector("#banner"), admitted);
  }
  // What newcomers wait for goes first: the server takes a while to say what it has.
  app.info = begin(app, address).then(offers);
  controls(document.querySelector("#controls"), app);
  notices(document.querySelector("#banner"), app);
  installKeys(app);
  url.watch(route);
  choose();
  await route();
  app.ready = true;
  if (url.get("tour")) void startTour(Number(url.get("tour")) - 1);
  live.keepFresh(() => runner.current);
  speak();
}

/** What the server has to offer, asked for until it says so: without it there are no choices. */
async function offers() {
  for (;;) {
    const found = await get("/kvm");
    if (found) return found;
    await new Promise((again) => setTimeout(again, ASK_AGAIN_MS));
  }
}

/** Without a VM in the URL: the one whose threads run, else the first. */
function choose() {
  if (url.get("vm")) return;
  const vms = [...store.vms.values()];
  const chosen = vms.find((vm) => vm.running) ?? vms.find((vm) => vm.slots.length) ?? vms[0];
  if (chosen && chosen.id !== "default") url.write({ vm: chosen.id });
}

/** For the console and for measurements. */
Object.assign(window, { kickstand: app });
void start();
