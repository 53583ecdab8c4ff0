/** The warnings as a list, each with why it matters and where to look. */

import { el, put, say, sync } from "../page/dom.js";
import { viewOf } from "./index.js";

export function warnings(root, app) {
  const list = el("ul", { class: "warninglist" });
  const none = el("p", { class: "empty" }, "Nothing looks wrong. Spinning vCPUs, slow or hanging kicks, holes and gaps in the stream would be listed here.");
  put(root, none, list);

  function tell() {
    const { found } = app.watchdog;
    none.hidden = found.length > 0;
    sync(list, found, ({ key }) => key, ({ level, why, view }) => el("li", { class: level },
      el("b", {}, level === "bad" ? "Problem: " : "Note: "), el("span", { class: "text" }), el("p", { class: "about" }, why),
      el("button", { type: "button", class: "small", onclick: () => app.open(view) }, `Look at it (${viewOf(view)?.label})`)),
    (node, { text }) => say(node.querySelector(".text"), text));
  }

  app.frame.slow.add(tell);
  tell();
  return () => app.frame.slow.delete(tell);
}
