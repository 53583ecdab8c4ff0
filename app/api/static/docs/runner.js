// One operation as a command line, and, on this machine's own server, as a button.
import { element } from "./dom.js";

const LOOPBACK = /^(localhost|127\.\d+\.\d+\.\d+|\[::1\])$/;
const LINES = 12;
const STREAM_MS = 1500;
const LONGEST = 20000;

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** The path with its parameters filled in, and what was given for the query. */
export function address(path, parameters) {
  const query = new URLSearchParams();
  let filled = path;
  for (const { name, in: where, value } of parameters) {
    if (where === "path") filled = filled.replace(`{${name}}`, encodeURIComponent(value));
    else if (where === "query" && value !== "") query.append(name, value);
  }
  return query.size ? `${filled}?${query}` : filled;
}

/** The curl of a request. */
export function curl(method, url, body, streams) {
  const words = ["curl", streams ? "-N" : "-s"];
  if (method !== "GET") words.push("-X", method);
  if (streams) words.push("-H", quoted("Accept: application/x-ndjson"));
  words.push(quoted(location.origin + url));
  if (body?.json !== undefined) words.push("-H", quoted("Content-Type: application/json"), "-d", quoted(body.json));
  if (body?.raw !== undefined) {
    words.push("-H", quoted("Content-Type: application/octet-stream"), "--data-binary", quoted(body.raw));
  }
  return words.join(" ");
}

/** A button that sends the request, and the place where its answer is shown. */
export function runner(method, request, streams) {
  if (!LOOPBACK.test(location.hostname)) return [];
  const shown = element("div", { class: "answer", role: "status" });
  const button = element("button", { type: "button", class: "run" }, "Run");
  button.addEventListener("click", async () => {
    const { url, body } = request();
    if (method === "DELETE" || url === "/reset") {
      if (!confirm(`${method} ${url}: this takes something away.`)) return;
    }
    button.disabled = true;
    shown.replaceChildren("…");
    shown.replaceChildren(...(await sent(method, url, body, streams)));
    button.disabled = false;
  });
  return [button, shown];
}

async function sent(method, url, body, streams) {
  const headers = streams ? { Accept: "application/x-ndjson" } : {};
  if (body) headers["Content-Type"] = body.json === undefined ? "application/octet-stream" : "application/json";
  const began = performance.now();
  try {
    const stop = new AbortController();
    const answer = await fetch(url, { method, headers, body: body?.json ?? body?.raw, signal: stop.signal });
    const took = Math.round(performance.now() - began);
    const kind = answer.ok ? "fine" : "refused";
    const head = element("p", {}, element("strong", { class: kind }, String(answer.status)), ` in ${took} ms`);
    return [head, element("pre", { tabindex: "0" }, await text(answer, streams, stop))];
  } catch (error) {
    return [element("p", { class: "refused" }, `No answer: ${error.message}`)];
  }
}

async function text(answer, streams, stop) {
  if (streams && answer.ok) return firstLines(answer, stop);
  const type = answer.headers.get("content-type") ?? "";
  if (type.includes("octet-stream")) return bytes(new Uint8Array(await answer.arrayBuffer()));
  const whole = await answer.text();
  const pretty = /json\b/.test(type) && !type.includes("ndjson") ? JSON.stringify(JSON.parse(whole), null, 2) : whole;
  return pretty.length > LONGEST ? `${pretty.slice(0, LONGEST)}\n…` : pretty || "(no body)";
}

function bytes(content) {
  const hex = [...content.slice(0, 256)].map((byte) => byte.toString(16).padStart(2, "0")).join(" ");
  return `${content.length} bytes\n${hex}${content.length > 256 ? " …" : ""}`;
}

async function firstLines(answer, stop) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  const end = setTimeout(() => stop.abort(), STREAM_MS);
  let seen = "";
  try {
    while (seen.split("\n").length <= LINES) {
      const { value, done } = await reader.read();
      if (done) break;
      seen += value;
    }
  } catch {
    // it was stopped
  }
  clearTimeout(end);
  stop.abort();
  return `${seen.split("\n").slice(0, LINES).map((line) => line.slice(0, 400)).join("\n")}\n(a stream: this page stops listening)`;
}
