/** Making and updating elements. Text is always set as text, never as markup. */

const SVG = "http://www.w3.org/2000/svg";

/**
 * Make an element: `on*` are listeners, `style` and `dataset` objects, the rest attributes (false: left out).
 * @param {string} tag
 * @param {Record<string, any>} [props]
 * @param {...any} children nodes, texts and numbers, or lists of them; null and false are left out
 * @returns {any}
 */
export function el(tag, props = {}, ...children) {
  return fill(set(document.createElement(tag), props), ...children);
}

/** As `el`, for SVG. @param {...any} children @returns {any} */
export function svg(tag, props = {}, ...children) {
  return fill(set(document.createElementNS(SVG, tag), props), ...children);
}

/** Set attributes, listeners and styles of an element. */
export function set(node, props) {
  for (const [name, value] of Object.entries(props)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") Object.assign(node.style, value);
    else if (name === "dataset") Object.assign(node.dataset, value);
    else if (name === "value") node.value = value;
    else if (value === false || value === null || value === undefined) node.removeAttribute(name);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  return node;
}

/** Append children; null and false are left out. @param {...any} children */
export function fill(node, ...children) {
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== false) node.append(child);
  }
  return node;
}

/** Replace the children of an element. @param {...any} children */
export function put(node, ...children) {
  node.replaceChildren();
  return fill(node, ...children);
}

/** Set the text of an element if it differs, so that an unchanged page costs nothing. */
export function say(node, text) {
  const wanted = String(text);
  if (node.textContent !== wanted) node.textContent = wanted;
}

/**
 * Make the children of `parent` stand for `items`, in order, keeping those that stay.
 * @template T
 * @param {Element} parent
 * @param {T[]} items
 * @param {(item: T) => string|number} key
 * @param {(item: T) => any} make
 * @param {(node: any, item: T) => void} [update]
 */
export function sync(parent, items, key, make, update = () => {}) {
  const old = new Map([...parent.children].map((node) => [/** @type {any} */ (node).key, node]));
  let at = parent.firstElementChild;
  for (const item of items) {
    const wanted = key(item);
    let node = old.get(wanted);
    if (node) old.delete(wanted);
    else {
      node = make(item);
      /** @type {any} */ (node).key = wanted;
    }
    update(node, item);
    if (node === at) at = at.nextElementSibling;
    else parent.insertBefore(node, at);
  }
  for (const node of old.values()) node.remove();
}

/** A canvas context that fits its box on this screen; null while the box has no size. */
export function fitted(canvas) {
  const { clientWidth: width, clientHeight: height } = canvas;
  if (!width || !height) return null;
  const ratio = Math.min(window.devicePixelRatio || 1, 2);
  const changed = canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio);
  if (changed) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  return { context, width, height, changed, ratio };
}

/** Whether a pointer is down on something: what moved away under it now would not be clicked. */
export function pressing() {
  return document.querySelector(":is(button, a, summary, label, input, select):active") !== null;
}
