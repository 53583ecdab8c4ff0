/**
 * One animation loop for the page. Canvases are drawn every frame, the rest a few times a second; what a frame
 * cost is measured, since a page that watches must not stutter.
 */

const SLOW_MS = 200;
const MEASURED = 2048;

export class Frame {
  constructor() {
    /** @type {Set<(now: number) => void>} */
    this.fast = new Set();
    /** @type {Set<(now: number) => void>} */
    this.slow = new Set();
    this.frames = 0;
    this.work = new Float32Array(MEASURED);
    this._spent = 0;
    this._slowAt = 0;
    /** @type {(() => void)[]} */
    this._waiting = [];
    this.still = matchMedia("(prefers-reduced-motion: reduce)");
    requestAnimationFrame((now) => this._frame(now));
  }

  /** Milliseconds of work since the last frame. */
  spent() {
    return this._spent;
  }

  /** Do something and count its time. */
  timed(work) {
    const began = performance.now();
    work();
    this._spent += performance.now() - began;
  }

  /** The next frame; soon, where the page is hidden and there are no frames. */
  next() {
    return new Promise((resolve) => {
      if (document.hidden) setTimeout(resolve, 50);
      else this._waiting.push(() => resolve(undefined));
    });
  }

  /** A quantile of the work per frame, over the newest frames, ms. */
  quantile(q) {
    const sorted = Array.from(this.work.subarray(0, Math.min(this.frames, MEASURED))).sort((a, b) => a - b);
    return sorted.length ? sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))] : 0;
  }

  /** Start measuring again. */
  reset() {
    this.frames = 0;
  }

  _frame(now) {
    requestAnimationFrame((next) => this._frame(next));
    this.timed(() => this._draw(now));
    this.work[this.frames++ % MEASURED] = this._spent;
    this._spent = 0;
    const waiting = this._waiting;
    this._waiting = [];
    for (const resume of waiting) resume();
  }

  _draw(now) {
    const calm = this.still.matches;
    const slow = now - this._slowAt >= SLOW_MS;
    if (!calm || slow) for (const draw of this.fast) draw(now);
    if (!slow) return;
    this._slowAt = now;
    for (const draw of this.slow) draw(now);
  }
}
