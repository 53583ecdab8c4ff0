/** The rail of buttons: kick, resume, merge and split, the rest behind More; behind a sign, what each sends, as curl. */

import { copy, curl } from "../live/curl.js";
import { el, pressing, put, say } from "../page/dom.js";
import { action, plainly, protectable } from "./actions.js";

const SHOWN = 12; // requests of one action that are spelled out

/** @param {Element} root @param {any} app */
export function controls(root, app) {
  /** @type {any[]} */
  const rows = [];
  const row = (/** @type {import("./actions.js").Button} */ [id, of]) => rowOf(app, id, of, rows);
  const inside = el("input", { type: "checkbox", id: "inside", role: "switch", onchange: () => {
    app.form.inside = inside.checked;
    update();
  } });
  const rest = el("details", { id: "more", ontoggle: () => void open() }, el("summary", {}, "More"));
  let fields = null;

  /** What is behind More is fetched when it is first opened. */
  async function open() {
    if (fields) return;
    fields = { update() {} };
    const { more } = await import("./more.js");
    fields = more(rest, app, row, update);
    update();
  }
  put(root,
    el("section", { class: "group", "aria-label": "Kick" }, [plainly("kick"), plainly("resume")].map(row)),
    el("section", { class: "group", "aria-label": "Memory slots" },
      /** @type {import("./actions.js").Button[]} */ ([["merge", protectable("merge")], ["split", protectable("split")]]).map(row), el("label", { class: "check", for: "inside" }, inside, "inside a kick")),
    rest);

  function update() {
    if (pressing()) return;
    const vm = app.vm();
    fields?.update();
    inside.checked = Boolean(app.form.inside);
    for (const one of rows) one.update(vm);
  }
  app.frame.slow.add(update);
}

/** A button, what came of it, and its curl behind a sign. */
function rowOf(app, id, of, rows) {
  const first = action(of(app.form));
  const about = el("span", { class: "unseen", id: `about-${id}` });
  const button = el("button", { type: "button", id: `do-${id}`, class: first.danger ? "danger" : false, "aria-describedby": `about-${id}`, onclick: () => press(app, action(of(app.form))) }, first.label, first.key ? el("kbd", {}, first.key) : null);
  const result = el("p", { class: "result", hidden: true });
  const code = el("pre", { tabindex: 0, "aria-label": `${first.label} as curl` });
  const copied = el("button", { type: "button", class: "small", onclick: () => copyCode() }, "Copy");
  const details = el("details", { class: "curl", ontoggle: () => details.open && fillCode() },
    el("summary", { title: `${first.label} as curl` }, el("span", { "aria-hidden": "true" }, "›_"), el("span", { class: "unseen" }, `${first.label} as curl`)), code, copied);
  let requests = [];

  function fillCode() {
    const lines = requests.slice(0, SHOWN).map((request) => curl(request));
    if (requests.length > SHOWN) lines.push(`# and ${requests.length - SHOWN} more of the kind`);
    say(code, lines.length ? lines.join("\n") : "# nothing to send now");
  }
  async function copyCode() {
    say(copied, (await copy(requests.map((request) => curl(request)).join("\n"))) ? "Copied" : "Select and copy by hand");
    setTimeout(() => say(copied, "Copy"), 1500);
  }
  rows.push({
    update(vm) {
      const what = action(of(app.form));
      const obstacle = what.can(vm, app.form);
      const outcome = app.runner.results.get(what.id);
      // A disabled button could not be reached by keyboard to learn why.
      button.setAttribute("aria-disabled", String(Boolean(obstacle) || Boolean(outcome?.busy)));
      button.title = obstacle ? `Not now: ${obstacle}` : what.about;
      say(about, obstacle ? `${what.about}. Not now: ${obstacle}.` : what.about);
      requests = obstacle ? [] : what.requests(vm, app.form);
      if (details.open) fillCode();
      result.hidden = !outcome;
      if (outcome) {
        say(result, outcome.text);
        result.className = `result ${outcome.ok ? "good" : "bad"}`;
      }
    },
  });
  return el("div", { class: "action" }, button, details, about, result);
}

function press(app, what) {
  if (what.danger && !confirm(`${what.label} "${app.runner.current}"? ${what.about}.`)) return;
  void app.runner.run(what.id);
}
