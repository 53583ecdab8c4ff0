/** The state of the views, kept in the URL's fragment: every view is a link that can be passed on. */

const listeners = new Set();

/** @returns {Record<string, string>} what the fragment says */
export function read() {
  return Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
}

/** One member of the fragment. */
export function get(name, fallback = "") {
  return read()[name] ?? fallback;
}

/** Change members; an empty value removes one. `step`: a step that Back undoes. */
export function write(changes, { step = false } = {}) {
  const next = new URLSearchParams(location.hash.slice(1));
  for (const [name, value] of Object.entries(changes)) {
    if (value === "" || value === null || value === undefined) next.delete(name);
    else next.set(name, String(value));
  }
  const fragment = `#${next}`;
  if (fragment === location.hash || (fragment === "#" && !location.hash)) return;
  const address = location.pathname + (fragment === "#" ? "" : fragment);
  if (step) history.pushState(null, "", address);
  else history.replaceState(null, "", address);
  announce();
}

/** Call `listener` after every change; returns how to stop. */
export function watch(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

function announce() {
  for (const listener of listeners) listener(read());
}

/** The address of the page with these members changed. */
export function link(changes) {
  const next = new URLSearchParams(location.hash.slice(1));
  for (const [name, value] of Object.entries(changes)) next.set(name, String(value));
  return `#${next}`;
}

addEventListener("hashchange", announce);
addEventListener("popstate", announce);
