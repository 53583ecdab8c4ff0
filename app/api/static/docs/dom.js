// Elements from text: nothing that comes from the schema or from an answer ever becomes markup.

/** Makes an element; children are elements or text. */
export function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "class") made.className = value;
    else if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

/** Text in which `code` stands between backticks. */
export function told(text = "") {
  const pieces = text.replaceAll("``", "`").split("`");
  return pieces.map((piece, at) => (at % 2 ? element("code", {}, piece) : piece));
}

/** Paragraphs of such text. */
export function paragraphs(text = "") {
  return text.split("\n\n").map((part) => element("p", {}, ...told(part.replaceAll("\n", " "))));
}

/** A table that scrolls by itself where it does not fit. */
export function table(heads, rows, label) {
  const head = element("tr", {}, ...heads.map((text) => element("th", { scope: "col" }, text)));
  const body = rows.map(([first, ...rest]) =>
    element("tr", {}, element("th", { scope: "row" }, ...first), ...rest.map((cell) => element("td", {}, ...cell))),
  );
  const made = element("table", {}, element("thead", {}, head), element("tbody", {}, ...body));
  return element("div", { class: "scrolls", tabindex: "0", role: "region", "aria-label": label }, made);
}
