/** The warnings as a badge in the header: how many, and the way to them. */

import { Watchdog } from "../model/watchdog.js";
import { el, put, say } from "../page/dom.js";
import * as url from "../page/url.js";

export function warningsBadge(root, app) {
  const number = el("b", {}, "…");
  const word = el("span", {}, " warnings");
  const link = el("a", { class: "badge", id: "badge", href: url.link({ view: "warnings" }), "data-view": "warnings", onclick: (event) => {
    event.preventDefault();
    app.open("warnings");
  } }, number, word);
  put(root, link);
  app.watchdog = new Watchdog();
  app.frame.slow.add(() => {
    app.watchdog.look(app.vm(), app.store, app.live.now);
    const { found } = app.watchdog;
    say(number, app.store.epoch === null ? "…" : found.length);
    say(word, found.length === 1 ? " warning" : " warnings");
    link.classList.toggle("bad", found.some(({ level }) => level === "bad"));
    link.title = found.map(({ text }) => text).join("; ");
  });
}
