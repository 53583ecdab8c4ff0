/** Draws the past: a lane for each vCPU, or, where there are too many, how many were in each state. */

import { STATES } from "../../model/states.js";

const MOST = 5000; // rectangles of one drawing

/**
 * @typedef {{context: CanvasRenderingContext2D, left: number, right: number, top: number, start: number, end: number,
 *            colours: Record<string, string>}} Stage  times in ns
 */

/** Where a time is, in pixels. @param {Stage} stage */
export function place(stage, t) {
  return stage.left + ((t - stage.start) / (stage.end - stage.start)) * (stage.right - stage.left);
}

/**
 * Lanes, newest first: going back, each change says what was before it.
 * @param {Stage} stage @param {import("../../model/ring.js").Changes} changes @param {Uint8Array} states as they are at the newest change
 * @param {{first: number, count: number, tall: number}} lanes @param {number} now
 */
export function drawLanes(stage, changes, states, { first, count, tall }, now) {
  const { context, left, right, top, start, end } = stage;
  const current = states.slice(first, first + count);
  const edge = new Float64Array(count).fill(Math.min(right, place(stage, Math.min(end, now))));
  /** @type {number[][]} by state: x, lane, width */
  const boxes = STATES.map(() => []);
  const least = Math.max(1, Math.ceil(((right - left) * count) / MOST));
  for (let n = 1; n <= changes.kept; n++) {
    const at = changes.at(n);
    const t = changes.t[at];
    if (t < start) break;
    const lane = changes.vcpu[at] - first;
    if (lane < 0 || lane >= count) continue;
    if (t <= end) {
      const x = place(stage, t);
      const wide = edge[lane] - x;
      if (wide >= least) {
        boxes[current[lane]].push(x, lane, wide);
        edge[lane] = x;
      } else if (current[lane] !== 3 && wide > 0 && edge[lane] - x < least) {
        boxes[current[lane]].push(edge[lane] - least, lane, least); // too short to see, yet worth a line
        edge[lane] -= least;
      }
    }
    current[lane] = changes.old[at];
  }
  const known = Math.max(left, changes.kept === changes.size ? place(stage, changes.since) : left);
  for (let lane = 0; lane < count; lane++) if (edge[lane] > known) boxes[current[lane]].push(known, lane, edge[lane] - known);
  if (known > left) {
    context.fillStyle = stage.colours.line;
    context.fillRect(left, top, known - left, count * tall);
    context.fillStyle = stage.colours.ink;
    context.font = "12px system-ui, sans-serif";
    if (known - left > 90) context.fillText("not kept", left + 6, top + 14);
  }
  boxes.forEach((list, code) => {
    context.fillStyle = stage.colours[STATES[code].name];
    const inset = code === 0 ? tall * 0.36 : code === 3 ? tall * 0.1 : tall * 0.22; // height as well as colour
    for (let n = 0; n < list.length; n += 3) {
      const x = Math.max(left, list[n]);
      context.fillRect(x, top + list[n + 1] * tall + inset, list[n] + list[n + 2] - x, tall - 2 * inset);
    }
  });
}

/** How many vCPUs were in each state, as stacked columns. */
export function drawCounts(stage, changes, states, high, now) {
  const { context, left, right, top, start, end, colours } = stage;
  const wide = 3;
  const counts = new Int32Array(STATES.length);
  for (const code of states) counts[code] += 1;
  let n = 1;
  for (let x = Math.min(right, place(stage, Math.min(end, now))) - wide; x >= left; x -= wide) {
    const t = start + ((x - left) / (right - left)) * (end - start);
    for (; n <= changes.kept && changes.t[changes.at(n)] > t; n++) {
      const at = changes.at(n);
      counts[changes.state[at]] -= 1;
      counts[changes.old[at]] += 1;
    }
    if (n > changes.kept && changes.kept === changes.size) return;
    column(context, x, top, wide, high, counts, states.length, colours);
  }
}

function column(context, x, top, wide, high, counts, all, colours) {
  let y = top + high;
  for (const code of [3, 2, 4, 1, 5, 6, 0]) {
    const tall = (counts[code] / all) * high;
    if (tall <= 0) continue;
    context.fillStyle = colours[STATES[code].name];
    context.fillRect(x, y - tall, wide, tall);
    y -= tall;
  }
}

/** The phases of the episodes in view, as bands across the lanes. Returns where each is, for clicks. */
export function drawBands(stage, episodes, bottom, now, label) {
  const hits = [];
  for (const episode of episodes) {
    const last = episode.resumed ?? episode.end ?? now;
    if (last < stage.start || episode.start > stage.end) continue;
    if (episode.requested !== null) {
      const done = episode.completed ?? (episode.takenBack ? episode.end ?? now : now);
      band(stage, episode.requested, done, bottom, "drain", "draining", label);
      if (episode.completed !== null) band(stage, episode.completed, episode.resume ?? now, bottom, "closed", "window: nobody inside", label);
      if (episode.resume !== null) band(stage, episode.resume, episode.resumed ?? now, bottom, "drain", "resume", label);
    } else {
      band(stage, episode.start, episode.end ?? now, bottom, "torn", "unprotected change of slots", label);
    }
    const x = Math.max(stage.left, place(stage, episode.start));
    hits.push({ episode, from: x, to: Math.max(x + 8, Math.min(stage.right, place(stage, last))) });
  }
  return hits;
}

function band(stage, from, to, bottom, colour, name, label) {
  const { context, left, right, colours } = stage;
  const x = Math.max(left, place(stage, from));
  const wide = Math.max(2, Math.min(right, place(stage, to)) - x);
  if (x > right) return;
  context.save();
  context.globalAlpha = colour === "closed" ? 0.16 : 0.3;
  context.fillStyle = colours[colour];
  context.fillRect(x, label, wide, bottom - label);
  context.restore();
  context.fillStyle = colours[colour];
  context.fillRect(x, label, wide, 3);
  context.font = "12px system-ui, sans-serif";
  const text = context.measureText(name).width + 8 < wide ? name : "";
  context.fillStyle = colours.ink;
  context.fillText(text, x + 4, label + 15);
}
