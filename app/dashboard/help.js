/** What a kick does, what the states are, and which keys there are. */

import { STATES, glyph } from "./model/states.js";
import { el } from "./page/dom.js";
import { SETTING } from "./page/settings.js";

/** @returns {HTMLDialogElement} */
export function help() {
  const on = el("input", { type: "checkbox", onchange: () => localStorage.setItem(SETTING, on.checked ? "on" : "off") });
  on.checked = localStorage.getItem(SETTING) !== "off";
  const keys = [["k", "kick the VM"], ["r", "resume it"], ["/", "go to the filter"], ["1 – 5", "open a view"], ["w", "open the warnings"], ["?", "this help"],
    ["← →", "timeline: one step back or on"], ["+ −", "timeline: zoom"], ["space", "timeline: pause the view; the VM goes on"], ["arrows", "vCPUs: choose one; explorer: step through the counterexample"]];
  const dialog = el("dialog", { "aria-labelledby": "help-title" },
    el("h2", { id: "help-title", tabindex: -1 }, "Help"),
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
  return dialog;
}
