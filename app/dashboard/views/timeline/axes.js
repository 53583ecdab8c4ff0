/** What is around the lanes: names, marks, gaps, the axis of time and the cursor. */

import { duration } from "../../page/format.js";
import { place } from "./lanes.js";

/** A name before each lane, as far as there is room. */
export function drawNames(stage, vm, first, count, tall) {
  const { context, top, colours } = stage;
  context.fillStyle = colours.soft;
  const every = Math.ceil(12 / tall);
  context.font = `${Math.min(12, tall * every)}px system-ui, sans-serif`;
  for (let lane = 0; lane < count; lane += every) {
    context.fillText(`vCPU ${vm.ids[first + lane]}`, 4, top + lane * tall + Math.min(tall, 12 + (tall - 12) / 2) - 1);
  }
  if (!count) context.fillText("all", 4, top + 14);
}

/** A red cross for each torn access. */
export function drawTorn(stage, vm, first, count, tall) {
  const { context, top, colours } = stage;
  context.strokeStyle = colours.torn;
  context.lineWidth = 2;
  context.beginPath();
  for (const episode of vm.episodes) {
    for (const { t, vcpu } of episode.torn) {
      const lane = (vm.index.get(vcpu) ?? -1) - first;
      if (lane < 0 || lane >= count || t < stage.start || t > stage.end) continue;
      const x = place(stage, t);
      const y = top + (lane + 0.5) * tall;
      const r = Math.min(6, tall / 2);
      context.moveTo(x - r, y - r);
      context.lineTo(x + r, y + r);
      context.moveTo(x + r, y - r);
      context.lineTo(x - r, y + r);
    }
  }
  context.stroke();
}

/** Grey where events are missing. */
export function drawGaps(stage, bottom, gaps, now) {
  const { context, left, right, top, colours } = stage;
  context.fillStyle = colours.line;
  for (const { from, to } of gaps) {
    const x = Math.max(left, place(stage, from));
    const wide = Math.min(right, place(stage, to ?? now)) - x;
    if (wide > 0) context.fillRect(x, top - 6, Math.max(1, wide), bottom - top + 6);
  }
}

/** The axis, with its zero at a time that has a name. */
export function drawAxis(stage, y, zero, name) {
  const { context, left, right, start, end, colours } = stage;
  const step = niceStep((end - start) / Math.min(6, (right - left) / 90));
  context.strokeStyle = colours.line;
  context.fillStyle = colours.soft;
  context.font = "12px system-ui, sans-serif";
  context.lineWidth = 1;
  for (let t = zero - Math.floor((zero - start) / step) * step; t <= end; t += step) {
    const x = Math.round(place(stage, t)) + 0.5;
    context.beginPath();
    context.moveTo(x, y);
    context.lineTo(x, y + 4);
    context.stroke();
    const text = Math.abs(t - zero) < step / 2 ? name : `${t > zero ? "+" : "−"}${duration(Math.abs(t - zero))}`;
    context.textAlign = x > right - 30 ? "right" : x < left + 30 ? "left" : "center";
    context.fillText(text, Math.min(x, right), y + 16);
  }
  context.textAlign = "left";
}

/** Where the steps are. */
export function drawCursor(stage, bottom, t) {
  const { context, left, right, colours } = stage;
  const x = place(stage, t);
  if (x < left || x > right) return;
  context.fillStyle = colours.ink;
  context.fillRect(x - 1, 6, 2, bottom - 6);
  context.beginPath();
  context.moveTo(x - 6, 4);
  context.lineTo(x + 6, 4);
  context.lineTo(x, 13);
  context.fill();
}

/** 1, 2 or 5 times a power of ten, at least `wanted`. */
function niceStep(wanted) {
  const power = 10 ** Math.floor(Math.log10(wanted));
  return [1, 2, 5, 10].map((digit) => digit * power).find((step) => step >= wanted) ?? power * 10;
}
