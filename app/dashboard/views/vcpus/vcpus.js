/** Every vCPU: as cells that change colour, or as a table. */

import { el, put } from "../../page/dom.js";
import * as url from "../../page/url.js";
import { fleet } from "./fleet.js";
import { table } from "./table.js";

const WAYS = { cells: ["Cells", fleet], table: ["Table", table] };

export function vcpus(root, app) {
  let stop = () => {};
  let shown = "";
  const body = el("div", {});
  const buttons = Object.entries(WAYS).map(([name, [label]]) => el("button", { type: "button", class: "small", id: `as-${name}`, onclick: () => {
    url.write({ as: name === "cells" ? "" : name });
    show();
  } }, label));
  put(root, el("div", { class: "tools" }, el("span", { class: "choice", role: "group", "aria-label": "As" }, buttons)), body);

  function show() {
    const name = WAYS[url.get("as")] ? url.get("as") : "cells";
    if (name === shown) return;
    shown = name;
    stop();
    body.className = `view ${name === "cells" ? "fleet" : "table"}`;
    for (const button of buttons) button.setAttribute("aria-pressed", String(button.id === `as-${name}`));
    stop = WAYS[name][1](put(body), app);
  }

  const unwatch = url.watch(show);
  show();
  return () => {
    unwatch();
    stop();
  };
}
