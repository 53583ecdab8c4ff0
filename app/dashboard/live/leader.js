/**
 * One stream for all tabs of a browser. HTTP/1.1 gives a browser six connections to a server; with a stream in
 * every tab, the seventh tab could not even kick.
 *
 * The tab that holds the lock reads the stream and passes every block on. When it closes, the lock goes to another
 * tab, which goes on after the last event that it has seen. A tab that hears nothing takes the lock by force.
 */

import { follow, lastId } from "./stream.js";

const LOCK = "kickstand-stream";
const CHANNEL = "kickstand";

/**
 * @typedef {{
 *   position: () => string|null,
 *   block: (text: string) => Promise<void>|void,
 *   status: (status: string) => void,
 *   role: (leads: boolean) => void,
 * }} Tab
 */

export class Shared {
  /** @param {Tab} tab */
  constructor(tab) {
    this.tab = tab;
    this.leads = false;
    this.joined = false; // before, blocks of other tabs are passed on, so that none is missed, but not that all is well
    this.status = "connecting";
    /** @type {AbortController|null} */
    this.reading = null;
    this.last = null; // the last id that went through here, whether or not this tab looked at it
    this.channel = new BroadcastChannel(CHANNEL);
    this.channel.onmessage = ({ data }) => this._heard(data);
  }

  /** Take part. Without locks (a page that is not from a trustworthy origin) every tab reads for itself. */
  start() {
    this.joined = true;
    if (!navigator.locks) {
      this._lead();
      return;
    }
    this.channel.postMessage({ kind: "hello" });
    this._ask({});
  }

  /** Nothing has been heard for long: whoever leads is frozen. */
  takeOver() {
    if (navigator.locks && !this.leads) this._ask({ steal: true });
  }

  _ask(options) {
    navigator.locks.request(LOCK, options, () => this._lead()).catch(() => this._robbed());
  }

  /** @returns {Promise<void>} settled when this tab leads no more */
  _lead() {
    this.leads = true;
    this.tab.role(true);
    this.reading = new AbortController();
    return follow({
      position: () => this.last ?? this.tab.position(),
      block: (text) => this._block(text),
      status: (status) => this._status(status),
      signal: this.reading.signal,
    });
  }

  _robbed() {
    if (!this.leads) return;
    this.leads = false;
    this.reading?.abort();
    this.tab.role(false);
    this._ask({});
  }

  _block(text) {
    this.channel.postMessage({ kind: "block", text });
    return this._take(text);
  }

  _take(text) {
    this.last = lastId(text) ?? this.last;
    return this.tab.block(text);
  }

  _status(status) {
    this.status = status;
    this.channel.postMessage({ kind: "status", status });
    this.tab.status(status);
  }

  _heard(message) {
    if (message.kind === "hello") {
      if (this.leads) this.channel.postMessage({ kind: "status", status: this.status });
    } else if (this.leads) {
      // Another tab leads by force; the lock's promise tells us in a moment.
    } else if (message.kind === "block") {
      void this._take(message.text);
    } else if (this.joined) {
      this.status = message.status;
      this.tab.status(message.status);
    }
  }
}
