// The API as a page, made from /openapi.json: operations by topic, each shape once.
import { element, paragraphs } from "./dom.js";
import { operation, shape } from "./operation.js";

const METHODS = ["get", "post", "put", "delete"];
const at = (id) => document.getElementById(id);

function sections(spec) {
  return spec.tags.map(({ name, description }) => {
    const found = Object.entries(spec.paths).sort(([one], [other]) => one.localeCompare(other)).flatMap(([path, item]) =>
      METHODS.filter((method) => item[method]?.tags.includes(name)).map((method) => operation(path, method, spec)),
    );
    return element("section", { id: `tag-${name}` }, element("h2", {}, name), ...paragraphs(description), ...found);
  });
}

function show(spec) {
  at("about").replaceChildren(...paragraphs(spec.info.description));
  const made = sections(spec);
  at("operations").replaceChildren(...made);
  const shapes = Object.keys(spec.components.schemas).map((name) => shape(name, spec));
  at("shapes").replaceChildren(element("h2", { id: "tag-shapes" }, "shapes"), ...shapes);
  const counts = made.map((section) => [section.id.slice(4), section.querySelectorAll("details").length]);
  const links = [...counts, ["shapes", shapes.length]];
  at("tags").replaceChildren(
    ...links.map(([name, count]) => element("a", { href: `#tag-${name}` }, name, element("span", {}, ` ${count}`))),
  );
  at("status").remove();
}

function filter() {
  const wanted = at("filter").value.trim().toLowerCase();
  for (const details of document.querySelectorAll("details")) details.hidden = !details.dataset.text.includes(wanted);
  for (const section of document.querySelectorAll("section")) section.hidden = !section.querySelector("details:not([hidden])");
}

function open() {
  const target = location.hash.length > 1 && at(decodeURIComponent(location.hash.slice(1)));
  if (target instanceof HTMLDetailsElement) {
    target.hidden = false;
    target.open = true;
    target.scrollIntoView();
  }
}

at("filter").addEventListener("input", filter);
addEventListener("hashchange", open);
const answer = await fetch("/openapi.json");
if (answer.ok) {
  show(await answer.json());
  open();
} else {
  at("status").textContent = `The schema cannot be read: ${answer.status}. Open the address that the server printed first.`;
}
