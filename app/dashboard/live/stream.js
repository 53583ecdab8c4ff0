/**
 * The server's event stream as blocks of whole lines (NDJSON).
 *
 * Read by fetch rather than EventSource: heartbeats are visible, a refused connection is tried again in every
 * browser, and not reading makes the server skip ahead (a gap and a snapshot) instead of filling our memory.
 */

const AGAIN_MS = [200, 500, 1000, 2000];
const FIRST_MS = 4000;

/**
 * @typedef {{
 *   position: () => string|null,
 *   block: (text: string) => Promise<void>|void,
 *   status: (status: "live"|"lost"|"refused") => void,
 *   signal: AbortSignal,
 * }} Reader  `position` is the id to go on after, or null for a snapshot
 */

/** Read until `signal` aborts, connecting again whenever the stream ends. @param {Reader} reader */
export async function follow(reader) {
  for (let failures = 0; !reader.signal.aborted; failures++) {
    if (await once(reader)) failures = 0;
    if (reader.signal.aborted) return;
    reader.status("lost");
    await pause(AGAIN_MS[Math.min(failures, AGAIN_MS.length - 1)], reader.signal);
  }
}

/** One connection; true if it brought anything. */
async function once(reader) {
  const position = reader.position();
  const path = position === null ? "/events" : `/events?after=${encodeURIComponent(position)}`;
  let brought = false;
  const connecting = new AbortController();
  const patience = setTimeout(() => connecting.abort(), FIRST_MS);
  try {
    const response = await fetch(path, {
      headers: { Accept: "application/x-ndjson" },
      signal: AbortSignal.any([reader.signal, connecting.signal]),
      cache: "no-store",
    });
    clearTimeout(patience);
    if (!response.ok || !response.body) {
      if (response.status === 401) reader.status("refused");
      return false;
    }
    reader.status("live");
    brought = true;
    await lines(response.body, reader.block);
  } catch {
    // The connection broke; the caller connects again.
  } finally {
    clearTimeout(patience);
  }
  return brought;
}

/** Cut a body into blocks that end with a line. */
async function lines(body, block) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const end = value.lastIndexOf("\n");
    if (end < 0) {
      rest += value;
      continue;
    }
    const text = rest + value.slice(0, end + 1);
    rest = value.slice(end + 1);
    await block(text);
  }
}

/** Wait, but not beyond an abort. */
export function pause(ms, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve(undefined)), { once: true });
  });
}

/** The records of a block. */
export function parse(text) {
  return JSON.parse(`[${text.trimEnd().replaceAll("\n", ",")}]`);
}

/** The id of the last event in a block that has one; null if none has. */
export function lastId(text) {
  const at = text.lastIndexOf('{"id":"');
  return at < 0 ? null : text.slice(at + 7, text.indexOf('"', at + 7));
}
