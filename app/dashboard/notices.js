/** What stands above the views: the invitation to the story, word of a restart. */

import { el, put } from "./dom.js";
import { story, told } from "./story.js";
import * as url from "./url.js";

/** The invitation, while nothing runs anywhere; then the story; and what a restart of the server means. */
export function notices(root, app) {
  const telling = story(app);
  const start = el("button", { class: "primary", id: "story", onclick: () => run() }, "Start the story");
  const guided = el("button", { id: "guided", onclick: () => app.startTour() }, "Take the tour instead");
  const invitation = el("div", { class: "notice hero" },
    el("div", {},
      el("h2", {}, "Nothing runs yet"),
      el("p", {}, "Start four guests, and watch what a ", el("b", {}, "kick"), " does: it gets every vCPU out of KVM_RUN and keeps it out, so that the VMM can change the memory map with nobody looking.")),
    el("div", { class: "buttons" }, start, guided));
  const restarted = el("p", { class: "notice" }, "The server was restarted: what you see is its new state. ",
    el("button", { class: "small", onclick: () => (dismissed = app.store.restarts) }, "Understood"));
  let dismissed = 0;
  let state = "";
  app.frame.slow.add(() => {
    const here = url.get("view", "overview") === "overview"; // elsewhere it would be in the way
    const idle = here && [...app.store.vms.values()].every((vm) => vm.pristine) && document.querySelector("#tour")?.hasAttribute("hidden");
    const vm = here ? told(app) : null;
    if (vm) telling.tell(vm);
    const next = `${idle}${vm !== null}${app.store.restarts > dismissed}`;
    if (next === state) return;
    state = next;
    put(root, app.store.restarts > dismissed ? restarted : null, idle ? invitation : vm ? telling.node : null);
  });

  async function run() {
    start.setAttribute("aria-disabled", "true");
    app.open("overview");
    await app.runner.story();
    start.removeAttribute("aria-disabled");
  }
}
