/** Numbers for people. */

/** A duration in nanoseconds, with three digits and a unit. */
export function duration(ns) {
  if (ns === null || ns === undefined || Number.isNaN(ns)) return "–";
  for (const [size, unit] of [[1e9, "s"], [1e6, "ms"], [1e3, "µs"]]) {
    if (Math.abs(ns) >= Number(size)) return `${digits(ns / Number(size))} ${unit}`;
  }
  return `${Math.round(ns)} ns`;
}

function digits(value) {
  const size = Math.abs(value);
  return value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : 2);
}

/** An integer with thin groups of three. */
export function count(value) {
  return Math.round(value).toLocaleString("en");
}

/** An address, without a BigInt's n. */
export function hex(value) {
  return `0x${BigInt(value).toString(16)}`;
}

/** A size of memory. */
export function size(bytes) {
  for (const [unit, name] of [[2 ** 30, "GiB"], [2 ** 20, "MiB"], [2 ** 10, "KiB"]]) {
    if (bytes >= Number(unit)) return `${Number((bytes / Number(unit)).toFixed(1))} ${name}`;
  }
  return `${bytes} B`;
}

/** "1 vCPU", "2 vCPUs". */
export function plural(number, noun, many = `${noun}s`) {
  return `${count(number)} ${number === 1 ? noun : many}`;
}

/** "a, b and 3 more". */
export function some(names, most = 4) {
  const shown = names.slice(0, most).join(", ");
  return names.length > most ? `${shown} and ${names.length - most} more` : shown;
}
