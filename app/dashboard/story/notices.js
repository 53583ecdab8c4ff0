/** What stands above the views: the invitation to the story, word of a restart. */

import { el, pressing, put, say } from "../page/dom.js";
import * as url from "../page/url.js";
import { told } from "./story.js";

/** What the address asks for and there is not; the VM of the tour is yet to come. */
function oddity({ strange, store }) {
  const view = strange.view ? `There is no view “${strange.view}”: this is the overview. ` : "";
  const touring = !document.querySelector("#tour")?.hasAttribute("hidden");
  const vm = strange.vm && !touring && store.epoch !== null && !store.vms.has(strange.vm) ? `There is no VM “${strange.vm}” on this server.` : "";
  return view + vm;
}

/** The invitation, while nothing runs anywhere; then the story; and what a restart of the server means. */
export function notices(root, app) {
  let telling = null; // fetched when there is something to tell
  const start = el("button", { class: "primary", id: "story", onclick: () => run() }, "Start the story");
  const guided = el("button", { id: "guided", onclick: () => app.startTour() }, "Take the tour instead");
  const invitation = el("div", { class: "notice hero" },
    el("div", {},
      el("h2", {}, "Nothing runs yet"),
      el("p", {}, "Start four guests, and watch what a ", el("b", {}, "kick"), " does: it gets every vCPU out of KVM_RUN and keeps it out, so that the VMM can change the memory map with nobody looking.")),
    el("div", { class: "buttons" }, start, guided));
  const restarted = el("p", { class: "notice" }, "The server was restarted: what you see is its new state. ",
    el("button", { class: "small", onclick: () => (dismissed = app.store.restarts) }, "Understood"));
  const strange = el("p", { class: "notice", role: "alert" });
  let dismissed = 0;
  let state = "";
  app.frame.slow.add(() => {
    if (pressing()) return; // all else lies below
    const here = url.get("view", "overview") === "overview"; // elsewhere it would be in the way
    const idle = here && [...app.store.vms.values()].every((vm) => vm.pristine) && document.querySelector("#tour")?.hasAttribute("hidden");
    const vm = here ? told(app) : null;
    if (vm && !telling) {
      telling = { node: null, tell() {} };
      void import("./telling.js").then(({ story }) => (telling = story(app)));
    }
    if (vm) telling.tell(vm);
    const odd = oddity(app);
    const next = `${idle}${vm !== null && telling.node !== null}${app.store.restarts > dismissed}${odd}`;
    if (next === state) return;
    state = next;
    say(strange, odd);
    put(root, odd ? strange : null, app.store.restarts > dismissed ? restarted : null, idle ? invitation : vm ? telling.node : null);
  });

  async function run() {
    start.setAttribute("aria-disabled", "true");
    app.open("overview");
    await app.runner.story();
    start.removeAttribute("aria-disabled");
  }
}
