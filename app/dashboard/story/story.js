/**
 * The story of the example VM: when it begins by itself, and while it is to be told. `telling` is how.
 */

import { STORY } from "../controls/actions.js";

const NAME = "kickstand-story"; // of the setting, and of the lock

/** Tell it no more, here. */
export function hide() {
  localStorage.setItem(NAME, "off");
}

/** The story's VM, while its story is to be told. */
export function told(app) {
  const hidden = localStorage.getItem(NAME) === "off" || !document.querySelector("#tour")?.hasAttribute("hidden");
  const vm = app.runner.current === STORY.name && app.vm();
  return vm && !hidden && vm.slots.length ? vm : null;
}

/** Begin by itself where that can disturb nobody: the page was opened without a wish, and nothing has ever run. */
export async function begin(app, address) {
  const wished = address.length > 1 || document.hidden || localStorage.getItem(NAME) === "off";
  const used = [...app.store.vms.values()].some((vm) => vm.id !== "default" || !vm.pristine);
  if (wished || used) return;
  const once = (lock) => lock && app.runner.story();
  await (navigator.locks ? navigator.locks.request(NAME, { ifAvailable: true }, once) : once(true));
}
