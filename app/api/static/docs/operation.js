// One operation: what it does, what it takes, a command line that runs, and what it answers.
import { element, paragraphs, table, told } from "./dom.js";
import { address, curl, runner } from "./runner.js";
import { fields, mentioned, nameOf, resolved, type } from "./types.js";

/** The head of an operation, which opens into the rest. */
export function operation(path, method, spec) {
  const item = spec.paths[path][method];
  const summary = element(
    "summary",
    {},
    element("span", { class: `method ${method}` }, method.toUpperCase()),
    element("code", { class: "path" }, path),
    element("span", { class: "says" }, item.summary),
  );
  const details = element("details", { id: item.operationId, class: "operation" }, summary);
  const aliases = item["x-aliases"] ?? [];
  details.dataset.text = [method, path, ...aliases, item["x-ioctl"], item.description].join(" ").toLowerCase();
  details.addEventListener("toggle", () => details.children.length > 1 || details.append(inside(path, method, spec)));
  return details;
}

function inside(path, method, spec) {
  const item = spec.paths[path][method];
  const parts = element("div", { class: "inside" }, ...paragraphs(item.description));
  const facts = [];
  if (item["x-ioctl"]) facts.push("Ioctl ", element("code", {}, item["x-ioctl"]), ". ");
  for (const alias of item["x-aliases"] ?? []) facts.push("VM ", element("code", {}, "default"), ": ", element("code", {}, alias), ". ");
  if (facts.length) parts.append(element("p", { class: "facts" }, ...facts));
  const given = parameters(item, spec);
  if (given.length) parts.append(table(["Parameter", "Type", "Means", "Value"], given.map((each) => each.row), "Parameters"));
  const body = requestBody(item, spec);
  parts.append(...body.parts, ...trial(path, method, item, given, body), ...answers(item, spec));
  return parts;
}

function parameters(item, spec) {
  return (item.parameters ?? [])
    .filter((each) => each.in !== "header")
    .map((each) => {
      const input = element("input", { "aria-label": each.name, value: String(each.example ?? ""), size: "12" });
      const name = [element("code", {}, each.name), each.required ? element("span", { class: "needed" }, " needed") : ""];
      return { ...each, input, row: [name, type(each.schema, spec), told(each.description), [input]] };
    });
}

function requestBody(item, spec) {
  if (!item.requestBody) return { parts: [] };
  const [media, content] = Object.entries(item.requestBody.content)[0];
  const isJson = media === "application/json";
  const title = element("h3", {}, `Body${item.requestBody.required ? "" : ", may be left out"}`);
  const known = isJson ? fields(content.schema, spec) : [];
  const shape = nameOf(content.schema);
  const told_ = element("p", {}, isJson && shape ? element("a", { href: `#shape-${shape}` }, shape) : media);
  const example = isJson ? Object.values(content.examples)[0] : { value: content.example };
  const text = isJson ? JSON.stringify(example.value, null, 1).replace(/\n\s*/g, " ") : example.value;
  const area = element("textarea", { rows: "3", spellcheck: "false", "aria-label": "Body" });
  area.value = text;
  const listed = known.length ? [table(["Field", "Type", "Means"], known, "Fields of the body")] : [told_];
  const means = example.summary ? [element("p", { class: "facts" }, `Example: ${example.summary}.`)] : [];
  return { parts: [title, ...listed, ...means, area], area, isJson };
}

function trial(path, method, item, given, body) {
  const streams = "text/event-stream" in (item.responses["200"]?.content ?? {});
  const request = () => {
    const url = address(path, given.map((each) => ({ ...each, value: each.input.value })));
    const text = body.area?.value ?? "";
    return { url, body: text === "" ? undefined : body.isJson ? { json: text } : { raw: text } };
  };
  const line = element("pre", { class: "curl", tabindex: "0" });
  const show = () => {
    const { url, body: sent } = request();
    line.textContent = curl(method.toUpperCase(), url, sent, streams);
  };
  for (const input of [...given.map((each) => each.input), ...(body.area ? [body.area] : [])]) input.addEventListener("input", show);
  show();
  const copy = element("button", { type: "button" }, "Copy");
  copy.addEventListener("click", () => void navigator.clipboard?.writeText(line.textContent).then(() => (copy.textContent = "Copied")));
  const [run, shown] = runner(method.toUpperCase(), request, streams);
  return [line, element("p", { class: "buttons" }, ...(run ? [run] : []), copy), ...(shown ? [shown] : [])];
}

function answers(item, spec) {
  const found = [element("h3", {}, "Answers")];
  for (const [status, answer] of Object.entries(item.responses)) {
    if (answer.$ref) continue;
    const types = Object.entries(answer.content ?? {});
    const schema = types.find(([, content]) => nameOf(content.schema ?? {}))?.[1].schema;
    const what = schema ? type(schema, spec) : types.length ? [types.map(([name]) => name).join(", ")] : ["no body"];
    const words = answer.description === "Successful Response" ? [] : [" ", ...told(answer.description)];
    found.push(element("p", {}, element("strong", {}, status), " ", ...what, ...words));
    if (schema && resolved(schema, spec).properties) found.push(table(["Field", "Type", "Means"], fields(schema, spec), `Fields of ${status}`));
  }
  const failures = [element("strong", {}, "else "), element("a", { href: "#shape-Problem" }, "Problem"), ", with an ", element("a", { href: "/problems" }, "errno"), "."];
  return [...found, element("p", {}, ...failures)];
}

/** A shape by itself, which opens into its fields. */
export function shape(name, spec) {
  const schema = spec.components.schemas[name];
  const details = element("details", { id: `shape-${name}`, class: "shape" }, element("summary", {}, element("code", {}, name)));
  details.dataset.text = `${name} ${schema.description ?? ""}`.toLowerCase();
  details.addEventListener("toggle", () => details.children.length > 1 || details.append(shapeInside(schema, spec)));
  return details;
}

function shapeInside(schema, spec) {
  const parts = element("div", { class: "inside" }, ...paragraphs(schema.description));
  const known = fields(schema, spec);
  if (known.length) parts.append(table(["Field", "Type", "Means"], known, "Fields"));
  else if (schema.prefixItems) parts.append(element("p", {}, "[", ...steps(schema, spec), "]"));
  else if (schema.discriminator) parts.append(cases(schema));
  else parts.append(element("p", {}, ...type(schema, spec)));
  const others = mentioned(known.length ? {} : schema.items ?? {});
  if (others.length) parts.append(element("p", {}, "See ", ...others.flatMap((each) => [element("a", { href: `#shape-${each}` }, each), " "])));
  return parts;
}

function steps(schema, spec) {
  const given = schema.prefixItems.flatMap((item, at) => {
    const optional = at >= (schema.minItems ?? 0) ? "?" : "";
    return [at ? ", " : "", ...type(item, spec), item.description ? ` (${item.description.replace(/\.$/, "")})` : "", optional];
  });
  return schema.items ? [...given, ", ", ...type(schema.items, spec), " …"] : given;
}

function cases(schema) {
  const rows = Object.entries(schema.discriminator.mapping).map(([value, ref]) => {
    const name = ref.split("/").pop();
    return [[element("code", {}, value)], [element("a", { href: `#shape-${name}` }, name)]];
  });
  return table([schema.discriminator.propertyName, "Shape"], rows, "Cases");
}
