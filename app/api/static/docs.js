// Renders /openapi.json as a list. Text only: nothing from the schema becomes markup.
const list = document.getElementById("operations");
const filter = document.getElementById("filter");

function element(name, text = "", className = "") {
  const made = document.createElement(name);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

function resolve(schema, spec, depth = 0) {
  if (Array.isArray(schema)) return schema.map((item) => resolve(item, spec, depth));
  if (schema === null || typeof schema !== "object" || depth > 6) return schema;
  if (schema.$ref) {
    const target = schema.$ref.slice(2).split("/").reduce((node, key) => node[key], spec);
    return resolve(target, spec, depth + 1);
  }
  return Object.fromEntries(Object.entries(schema).map(([key, value]) => [key, resolve(value, spec, depth + 1)]));
}

function block(title, value) {
  const made = document.createElement("div");
  made.append(element("strong", title), element("pre", JSON.stringify(value, null, 2)));
  return made;
}

function fill(details, operation, spec) {
  details.append(element("p", operation.description ?? operation.summary ?? ""));
  for (const parameter of operation.parameters ?? []) {
    const text = `${parameter.name} (${parameter.in}${parameter.required ? ", required" : ""}): ${parameter.description ?? ""}`;
    details.append(element("p", text));
  }
  if (operation.requestBody) details.append(block("Body", resolve(operation.requestBody.content, spec)));
  for (const [status, answer] of Object.entries(operation.responses)) {
    if (!answer.$ref) details.append(block(`${status} ${answer.description}`, resolve(answer.content ?? {}, spec)));
  }
}

function render(path, method, operation, spec) {
  const details = document.createElement("details");
  const summary = document.createElement("summary");
  summary.append(element("span", method.toUpperCase(), "method"), ` ${path} `);
  summary.append(element("span", operation["x-ioctl"] ?? "", "ioctl"));
  details.append(summary);
  details.dataset.text = `${method} ${path} ${operation["x-ioctl"] ?? ""} ${operation.description ?? ""}`.toLowerCase();
  details.addEventListener("toggle", () => details.children.length > 1 || fill(details, operation, spec), { once: true });
  return details;
}

filter.addEventListener("input", () => {
  const wanted = filter.value.toLowerCase();
  for (const details of list.querySelectorAll("details")) details.hidden = !details.dataset.text.includes(wanted);
});

const answer = await fetch("/openapi.json");
if (answer.ok) {
  const spec = await answer.json();
  document.getElementById("description").textContent = spec.info.description;
  const rendered = Object.entries(spec.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, operation]) => render(path, method, operation, spec)),
  );
  list.replaceChildren(...rendered);
} else {
  list.textContent = `The schema cannot be read: ${answer.status}. Open the address that the server printed first.`;
}
