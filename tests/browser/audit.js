/* What can be found by looking at the page: names, roles, labels, headings, identifiers, contrast, focus order. */
() => {
  const faults = [];
  const fault = (rule, node) => faults.push(`${rule}: ${node.outerHTML.slice(0, 110)}`);
  const shown = (node) => node.checkVisibility({ visibilityProperty: true, opacityProperty: true });
  const all = [...document.querySelectorAll("body *")].filter(shown);
  const dialog = document.querySelector("dialog[open]");
  const scope = dialog ? all.filter((node) => dialog.contains(node)) : all;

  const nameOf = (node) => {
    const by = node.getAttribute("aria-labelledby");
    const label = node.labels?.[0]?.textContent;
    return (by && document.getElementById(by)?.textContent) || node.getAttribute("aria-label") || label || node.textContent || node.getAttribute("title") || "";
  };
  for (const node of scope) {
    if (node.matches("button, a[href], input, select, textarea, summary, [role=img], [role=region], fieldset, dialog")) {
      if (!nameOf(node).trim()) fault("no name", node);
    }
    if (node.matches("input, select, textarea") && !node.labels?.length && !node.getAttribute("aria-label")) fault("no label", node);
    if (node.matches("canvas") && !(node.getAttribute("role") === "img" && node.getAttribute("aria-label"))) fault("canvas without words", node);
    if (node.matches("svg") && node.getAttribute("aria-hidden") !== "true" && !node.closest("[aria-hidden=true]")) fault("picture without words", node);
    if (node.tabIndex > 0) fault("focus order is forced", node);
    if (node.matches("table") && !node.querySelector("th")) fault("table without headings", node);
    if (node.matches("th") && !node.scope) fault("heading without scope", node);
    if (node.matches("button button, a button, button a, summary button")) fault("nested control", node);
    if (node.matches("[aria-hidden=true] button, [aria-hidden=true] a[href]")) fault("hidden control", node);
    if (node.matches("ul > :not(li), ol > :not(li)")) fault("list with something else", node);
    if (node.scrollHeight > node.clientHeight + 4 && /auto|scroll/.test(getComputedStyle(node).overflowY) && node.tabIndex < 0 && !node.querySelector("button, a, input, select, summary")) fault("scrolls but cannot be focused", node);
  }
  const cut = (node) => getComputedStyle(node).overflowX === "hidden" && node.clientWidth > 1 && node.scrollWidth > node.clientWidth + 1;
  for (const node of scope) if (!node.matches("select") && node.textContent.trim() && cut(node)) fault("text is cut off", node);
  if (document.documentElement.scrollWidth > innerWidth + 1) {
    const out = scope.findLast((node) => node.getBoundingClientRect().right > innerWidth + 1 && !node.closest(".scroll"));
    fault("wider than the window", out ?? document.body);
  }
  const ids = [...document.querySelectorAll("[id]")].map((node) => node.id);
  for (const id of new Set(ids)) if (ids.filter((other) => other === id).length > 1) fault("identifier twice", document.getElementById(id));
  for (const node of document.querySelectorAll("[aria-describedby], [aria-labelledby]")) {
    for (const id of `${node.getAttribute("aria-describedby") ?? ""} ${node.getAttribute("aria-labelledby") ?? ""}`.split(/\s+/).filter(Boolean)) if (!ids.includes(id)) fault(`points to no ${id}`, node);
  }
  let level = 0;
  if (!dialog) {
    for (const node of document.querySelectorAll("h1, h2, h3, h4")) {
      if (!node.checkVisibility()) continue;
      const here = Number(node.tagName[1]);
      if (here > level + 1) fault("heading skips a level", node);
      level = here;
    }
    if (document.querySelectorAll("main").length !== 1 || !document.documentElement.lang || !document.title) fault("no main, language or title", document.body);
  }

  // Contrast of text against the nearest background, blended.
  const forced = matchMedia("(forced-colors: active)").matches;
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => {
    const part = (value) => ((value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  };
  const behind = (node) => {
    const layers = [];
    for (let at = node; at; at = at.parentElement) {
      const colour = rgba(getComputedStyle(at).backgroundColor);
      if (colour[3] > 0) layers.push(colour);
      if (colour[3] === 255) break;
    }
    return layers.reverse().reduce((under, [r, g, b, a]) => [r, g, b].map((value, n) => (value * a + under[n] * (255 - a)) / 255), [255, 255, 255]);
  };
  for (const node of forced ? [] : scope) {
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    if (!own || node.closest("svg") || node.closest(".row.ahead") || node.closest(".unseen, .skip, option")) continue;
    const style = getComputedStyle(node);
    const back = behind(node);
    const colour = rgba(style.color);
    const [one, two] = [light(colour), light(back)].sort((a, b) => b - a);
    const ratio = (one + 0.05) / (two + 0.05);
    const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.6 && Number(style.fontWeight) >= 700);
    if (ratio < (large ? 3 : 4.5)) fault(`contrast ${ratio.toFixed(2)}`, node);
  }
  return [...new Set(faults)];
}
