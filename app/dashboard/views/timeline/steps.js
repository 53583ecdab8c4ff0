/** Going through a kick or a change of slots, event by event; semaphore and memory map follow. */

import { title } from "../../model/asking.js";
import { stepsOf } from "../../model/explain.js";
import { el, put, say } from "../../page/dom.js";
import { duration, plural } from "../../page/format.js";
import * as url from "../../page/url.js";

const LISTED = 250;

export function steps(app, { shown, compact }) {
  const head = el("p", { class: "where" });
  const text = el("p", { class: "step", "aria-live": "polite" });
  const back = el("button", { type: "button", class: "small", onclick: () => go(-1) }, "← Back");
  const on = el("button", { type: "button", class: "small", onclick: () => go(1) }, "Step →");
  const list = el("ol", { class: "steplist", tabindex: compact ? false : 0, "aria-label": "Steps" });
  const node = el("div", { class: "steps", hidden: true }, el("div", { class: "tools" }, back, on, head), text, compact ? null : list);
  let episode = null;
  let found = [];
  let at = 0;
  let size = 0;

  function pick(chosen) {
    episode = chosen;
    node.hidden = !episode;
    app.cursor = null;
    if (!episode) return;
    collect();
    at = -1;
    const wanted = Number(url.get("step")) || 0;
    go(url.get("episode") === String(episode.number) ? wanted + 1 : 1);
  }

  function collect() {
    size = episode.events.length;
    found = stepsOf(episode);
    put(list, found.slice(0, LISTED).map((step, n) => {
      const since = duration(step.record.data.t_ns - episode.start);
      return el("li", { class: step.torn ? "torn" : false }, el("button", { type: "button", class: "link", onclick: () => go(n - at) }, el("span", { class: "since" }, `+${since}`), step.text));
    }));
  }

  function go(by) {
    if (!episode || !found.length) return;
    at = Math.max(0, Math.min(found.length - 1, at + by));
    const step = found[at];
    app.cursor = { episode, at: step.at, record: step.record };
    shown(step.record);
    url.write({ episode: episode.number, step: at });
    tell();
    const current = list.children[at];
    for (const item of list.querySelectorAll("[aria-current]")) item.removeAttribute("aria-current");
    current?.setAttribute("aria-current", "step");
    if (current) list.scrollTop = current.offsetTop - list.clientHeight / 2;
  }

  function tell() {
    if (!episode) return;
    if (episode.events.length !== size) {
      const here = at;
      collect();
      at = Math.min(here, found.length - 1);
    }
    const step = found[at];
    if (!step) return;
    const omitted = episode.omitted ? `; ${plural(episode.omitted, "event")} of it not kept` : "";
    say(head, `${title(episode)}: step ${at + 1} of ${found.length}, ${duration(step.record.data.t_ns - episode.start)} after its start${omitted}`);
    say(text, step.text);
    text.classList.toggle("torn", step.torn);
    back.setAttribute("aria-disabled", String(at === 0));
    on.setAttribute("aria-disabled", String(at === found.length - 1));
  }

  return { node, pick, go, tell };
}
