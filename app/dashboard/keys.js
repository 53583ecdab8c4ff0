/** The keyboard. Single keys do nothing while a field has the focus, and can be turned off. */

import { el, fill } from "./dom.js";
import { STATES, glyph } from "./states.js";
import { VIEWS } from "./views/index.js";

const SETTING = "kickstand-keys";

export function install(app) {
  const dialog = help(app);
  document.body.append(dialog);
  const open = el("button", { type: "button", class: "small", id: "help", onclick: () => dialog.showModal() }, "Help ", el("kbd", {}, "?"));
  document.querySelector("#tools")?.append(open);
  const tour = el("button", { type: "button", class: "small", id: "open-tour", onclick: () => app.startTour() }, "Tour");
  document.querySelector("#tools")?.append(tour);
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || dialog.open || writing(event.target)) return;
    if (localStorage.getItem(SETTING) === "off" && event.key !== "?") return;
    if (act(event.key)) event.preventDefault();
  });

  function act(key) {
    if (key === "k") void app.runner.run("kick");
    else if (key === "r") void app.runner.run("resume");
    else if (key === "?") dialog.showModal();
    else if (key === "/") return focusFilter(app);
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
  if (!here) app.open("table");
  /** @type {HTMLElement|null} */ (document.querySelector("#main input[type=search]"))?.focus();
  return true;
}

function help(app) {
  const on = el("input", { type: "checkbox", onchange: () => localStorage.setItem(SETTING, on.checked ? "on" : "off") });
  on.checked = localStorage.getItem(SETTING) !== "off";
  const keys = [["k", "kick the VM"], ["r", "resume it"], ["/", "go to the filter"], ["1 – 9", "open a view"], ["?", "this help"],
    ["← →", "timeline: one step back or on"], ["+ −", "timeline: zoom"], ["space", "timeline: pause the view; the VM goes on"], ["arrows", "fleet: choose a vCPU"]];
  const dialog = el("dialog", { "aria-labelledby": "help-title" },
    el("h2", { id: "help-title" }, "Help"),
    el("h3", {}, "What a kick does"),
    el("ol", {},
      el("li", {}, "KVM_KICK_ALL_RUNNING_VCPUS sets the request bit KVM_REQ_USERSPACE_KICK on every vCPU and interrupts those in guest mode (an IPI); sleepers wake."),
      el("li", {}, "Each vCPU sees the bit at its next check and leaves KVM_RUN with −1, EINTR. It gives up the read side of the semaphore mem_transaction."),
      el("li", {}, "The kick takes the write side: that succeeds only when nobody is left inside. Then it returns. The window is open."),
      el("li", {}, "The bit stays. Whoever calls KVM_RUN now gets EINTR at once, so nobody can see the memory map half-changed."),
      el("li", {}, "KVM_RESUME_ALL_KICKED_VCPUS clears the bits. vCPUs enter the guest again and see the new map.")),
    el("h3", {}, "States of a vCPU"),
    el("ul", { class: "states" }, STATES.map((state, code) => el("li", {}, glyph(code), el("b", {}, state.label), ` ${state.meaning}`))),
    el("h3", {}, "Keys"),
    el("table", {}, el("tbody", {}, keys.map(([key, what]) => el("tr", {}, el("th", { scope: "row" }, el("kbd", {}, key)), el("td", {}, what))))),
    el("label", { class: "check" }, on, "single keys act (they never do while you type)"),
    el("p", {}, "Everything here is in the API: ", el("a", { href: "/docs" }, "/docs"), ". Each button shows its curl."),
    el("button", { type: "button", class: "primary", onclick: () => dialog.close() }, "Close"));
  return fill(dialog);
}
