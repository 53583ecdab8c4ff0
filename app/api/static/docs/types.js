// What a schema says in a few words: types, ranges, defaults, and the fields of a shape.
import { element, told } from "./dom.js";

const REF = "#/components/schemas/";

/** The name of the shape that a schema refers to, if it does. */
export const nameOf = (schema) => schema?.$ref?.startsWith(REF) && schema.$ref.slice(REF.length);

/** The schema itself, behind references. */
export function resolved(schema, spec) {
  const name = nameOf(schema);
  return name ? { ...resolved(spec.components.schemas[name], spec), ...without(schema, "$ref") } : schema;
}

const without = (schema, key) => Object.fromEntries(Object.entries(schema).filter(([name]) => name !== key));

const POWERS = [64, 63, 52, 32, 31];

/** Numbers of JavaScript round the largest, so that 2^64 - 1 is 2^64 there. */
function large(value) {
  const power = POWERS.find((bits) => value === 2 ** bits || value === 2 ** bits - 1);
  return power === undefined ? value.toLocaleString("en") : `2^${power} - 1`;
}

function range({ minimum, maximum, exclusiveMaximum }) {
  const highest = maximum ?? (exclusiveMaximum === undefined ? undefined : exclusiveMaximum - 1);
  if (highest !== undefined) return ` ${minimum < -1e6 ? `-2^${Math.round(Math.log2(-minimum))}` : minimum ?? ""} to ${large(highest)}`;
  return minimum ? ` from ${minimum}` : "";
}

/** A type as inline elements; shapes are links to where they are told. */
export function type(schema, spec) {
  const name = nameOf(schema);
  if (name) return [element("a", { href: `#shape-${name}` }, name)];
  if ("const" in schema) return [element("code", {}, JSON.stringify(schema.const))];
  if (schema.enum) return among(schema.enum.map((value) => [element("code", {}, String(value))]));
  const choices = schema.anyOf ?? schema.oneOf;
  if (choices) return among(choices.map((choice) => type(choice, spec)));
  if (Array.isArray(schema.type)) return among(schema.type.map((each) => [each]));
  if (schema.prefixItems) return ["list"];
  if (schema.type === "array") return ["list of ", ...type(schema.items ?? {}, spec)];
  if (schema.type === "integer") return [`integer${range(schema)}`];
  if (schema.type === "string" && schema.pattern?.includes("0x")) return [element("code", {}, '"0x…"')];
  if (schema.type === "string" && /\[0-9a-f/.test(schema.pattern ?? "")) return ["hex digits"];
  return [schema.type ?? "anything"];
}

function among(choices) {
  const several = choices.flatMap((choice, at) => (at ? [" | ", ...choice] : choice));
  return several;
}

/** The fields of an object: name, type, meaning. */
export function fields(schema, spec) {
  const shape = resolved(schema, spec);
  const required = new Set(shape.required ?? []);
  return Object.entries(shape.properties ?? {}).map(([name, field]) => [
    [element("code", {}, name), required.has(name) ? element("span", { class: "needed" }, " needed") : ""],
    type(without(field, "description"), spec),
    [...told(field.description ?? ""), ...usual(field)],
  ]);
}

function usual(field) {
  if (field.default === undefined || field.default === null) return [];
  return [" Default ", element("code", {}, JSON.stringify(field.default)), "."];
}

/** The shapes that a schema mentions by name, in order. */
export function mentioned(schema, found = []) {
  if (Array.isArray(schema)) schema.forEach((item) => mentioned(item, found));
  else if (schema && typeof schema === "object") {
    const name = nameOf(schema);
    if (name && !found.includes(name)) found.push(name);
    Object.values(schema).forEach((value) => mentioned(value, found));
  }
  return found;
}
