/** Getting in where the server wants a token: the printed URL carries a code that works once, in its fragment. */

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
