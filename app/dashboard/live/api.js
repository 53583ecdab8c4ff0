/** Calls to the server. A refusal is a value, not an exception: the page shows it. */

/**
 * @typedef {import("./curl.js").Request} Request
 * @typedef {{ok: boolean, status: number, data: any, problem: any, ms: number, request: Request}} Answer
 */

const PATIENCE_MS = 20_000; // on a busy machine a call takes seconds, and the server does what was given up all the same
const KEPT = 60;

/** @type {Answer[]} the newest calls, newest last */
export const calls = [];

/** @param {Request} request @returns {Promise<Answer>} */
export async function send(request) {
  const began = performance.now();
  const answer = await attempt(request);
  answer.ms = performance.now() - began;
  if (request.method !== "GET") {
    calls.push(answer);
    if (calls.length > KEPT) calls.shift();
  }
  return answer;
}

/** Read something; null if it cannot be had. */
export async function get(path) {
  const answer = await send({ method: "GET", path });
  return answer.ok ? answer.data : null;
}

async function attempt(request) {
  const { method, path, body, bytes } = request;
  const type = bytes ? "application/octet-stream" : "application/json";
  try {
    const response = await fetch(path, {
      method,
      body: bytes ?? (body === undefined ? undefined : JSON.stringify(body)),
      headers: bytes || body !== undefined ? { "Content-Type": type } : {},
      signal: AbortSignal.timeout(PATIENCE_MS),
      cache: "no-store",
    });
    const data = (response.headers.get("content-type") ?? "").includes("json") ? await response.json() : null;
    return made(request, response.ok, response.status, data);
  } catch (error) {
    const detail = error instanceof DOMException && error.name === "TimeoutError" ? `no answer for ${PATIENCE_MS / 1000} s; given up` : "the server does not answer";
    return made(request, false, 0, { title: "No answer", detail });
  }
}

function made(request, ok, status, data) {
  return { ok, status, data: ok ? data : null, problem: ok ? null : data ?? { title: String(status) }, ms: 0, request };
}

/** What went wrong, in one line. */
export function complaint({ status, problem }) {
  const errno = problem.errno ? `${problem.errno}: ` : "";
  return `${errno}${problem.detail ?? problem.title ?? `status ${status}`}`;
}
