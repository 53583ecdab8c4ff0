/** How large the cells of a fleet are, and what has room in one. */

export const BIG = 96; // cells so wide have words
export const SMALL = 30; // narrower ones have no number

/** Where a cell's glyph is: beside the words, above the number, or alone in the middle. */
export function placeOfGlyph(wide, tall) {
  if (wide >= BIG) return { x: 12, y: 12, size: 20 };
  const size = Math.min(wide, tall) * (wide >= SMALL ? 0.44 : 0.56);
  return wide >= SMALL ? { x: 4, y: 5, size } : { x: (wide - size) / 2, y: (tall - size) / 2, size };
}

/** Columns, and the size of a cell, so that `count` cells fit into `width` by `high` if at all possible. */
export function arrange(count, width, high) {
  for (const [cell, tall] of [[160, 104], [128, 100], [64, 52], [48, 44], [36, 36], [30, 30], [24, 24], [19, 19], [15, 15], [11, 11]]) {
    const columns = Math.max(1, Math.min(count, Math.floor(width / cell)));
    const rows = Math.ceil(count / columns);
    if (rows * tall > high && cell > 11) continue;
    if (cell < BIG) return { count, width, high, cell, tall, columns, rows };
    const even = Math.ceil(count / rows); // few vCPUs fill the rows, so that none stands alone
    return { count, width, high, cell: Math.min(290, Math.floor(width / even)), tall, columns: even, rows };
  }
  throw new Error("unreachable");
}
