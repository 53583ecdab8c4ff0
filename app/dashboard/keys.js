/** The keyboard. Single keys do nothing while a field has the focus, and can be turned off. */

import { el } from "./page/dom.js";
import { SETTING } from "./page/settings.js";
import { VIEWS } from "./views/index.js";

export function install(app) {
  let dialog = null;
  const open = el("button", { type: "button", class: "small", id: "help", onclick: () => void help() }, "Help ", el("kbd", {}, "?"));
  document.querySelector("#tools")?.append(open);
  const tour = el("button", { type: "button", class: "small", id: "open-tour", onclick: () => app.startTour() }, "Tour");
  document.querySelector("#tools")?.append(tour);
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || dialog?.open || writing(event.target)) return;
    if (localStorage.getItem(SETTING) === "off" && event.key !== "?") return;
    if (act(event.key)) event.preventDefault();
  });

  async function help() {
    const { help: make } = await import("./help.js");
    dialog ??= document.body.appendChild(make());
    if (dialog.open) return;
    dialog.showModal();
    dialog.querySelector("h2")?.focus(); // the browser's choice, a field below, would scroll the top away
    dialog.scrollTop = 0;
  }

  function act(key) {
    if (key === "k") void app.runner.run("kick");
    else if (key === "r") void app.runner.run("resume");
    else if (key === "?") void help();
    else if (key === "/") return focusFilter(app);
    else if (key === "w") app.open("warnings");
    else if (key === "ArrowRight" || key === "ArrowLeft") return document.querySelector(".counterexample:not([hidden])")?.dispatchEvent(new KeyboardEvent("keydown", { key, cancelable: true })) === false;
    else if (/^[1-9]$/.test(key) && VIEWS[Number(key) - 1]) app.open(VIEWS[Number(key) - 1].name);
    else return false;
    return true;
  }
}

function writing(target) {
  return target instanceof Element && target.closest("input:not([type=checkbox]), select, textarea") !== null;
}

/** Go to the filter of this view, or to the table's. */
function focusFilter(app) {
  const here = document.querySelector("#main input[type=search]");
  if (!here) app.open("vcpus", { as: "table" });
  /** @type {HTMLElement|null} */ (document.querySelector("#main input[type=search]"))?.focus();
  return true;
}
