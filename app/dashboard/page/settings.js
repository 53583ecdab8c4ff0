/** What this browser remembers. */

/** "off": single keys do nothing. */
export const SETTING = "kickstand-keys";
