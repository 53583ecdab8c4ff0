/** The badge that says how fresh the page is: position, lag, losses. Old data are greyed, never shown as live. */

import { el, put, say } from "../page/dom.js";
import { count, plural } from "../page/format.js";

const WORDS = { live: "live", lost: "reconnecting", refused: "not let in", connecting: "connecting" };

export function connection(root, app) {
  const { live, store, frame } = app;
  const word = el("b", {});
  const facts = el("span", {});
  put(root, el("span", { class: "dot", "aria-hidden": "true" }), word, facts);
  let stale = false;
  frame.slow.add(update);
  setInterval(update, 1000);

  function update() {
    const state = live.stale && live.status === "live" ? "stale" : live.status;
    root.className = `connection ${state}`;
    say(word, WORDS[state] ?? "no news");
    const lost = store.missed ? ` · ${plural(store.missed, "event")} skipped` : "";
    say(facts, state !== "live" ? "what you see is old" : live.base === Infinity ? "" : `${Math.round(live.lag)} ms behind${lost}`);
    root.title = `Event ${count(store.seq)}. ` + (live.leads ? "This tab reads the stream for all tabs of this browser" : "Another tab reads the stream for this one");
    if (live.stale === stale) return;
    stale = live.stale;
    document.body.classList.toggle("stale", stale);
    app.announce(stale ? "What is shown is old: the server has not been heard" : "The page is live again");
  }
}
