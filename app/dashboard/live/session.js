/** Getting in where the server wants a token, and loaded only there: the printed URL carries a code that works once, in its fragment. */

import { el, put } from "../page/dom.js";
import { needToken } from "./curl.js";

/** Exchange the code in the fragment for the cookie of a session, and remove it from the address. */
export async function exchangeCode() {
  const members = new URLSearchParams(location.hash.slice(1));
  const code = members.get("code");
  if (code === null) return true;
  members.delete("code");
  history.replaceState(null, "", location.pathname + (members.size ? `#${members}` : ""));
  return enter(code);
}

/** Try a code; true if it was right. */
export async function enter(code) {
  const response = await fetch("/session", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ code }),
  });
  if (response.ok) needToken();
  return response.ok;
}

/** The server wants its token. */
export function login(root, admitted) {
  const code = el("input", { id: "code", autocomplete: "off", spellcheck: "false" });
  const word = el("p", { role: "alert" }, admitted ? "" : "The code of that address is wrong, or was used already.");
  const submit = async (event) => {
    event.preventDefault();
    const given = code.value.trim();
    if (await enter(given.includes("#code=") ? given.split("#code=")[1] : given)) location.reload();
    else word.textContent = "That code is wrong, or was used already. A new start of the server prints a new one.";
  };
  put(root, el("form", { class: "notice", onsubmit: submit },
    el("h2", {}, "This server wants its token"),
    el("p", {}, "Open the address that it printed when it started, or paste it here. Its code works once and becomes a session of this browser."),
    el("label", { for: "code" }, "Address or code"), code, el("button", { class: "primary" }, "Enter"), word));
  code.focus();
}
