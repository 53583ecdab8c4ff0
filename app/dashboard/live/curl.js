/** Every call of this page as a command for a shell. */

/**
 * @typedef {{method: string, path: string, body?: any, bytes?: Uint8Array}} Request
 */

let token = false;

/** The server wants a token: commands name the variable that holds it. */
export function needToken() {
  token = true;
}

/** One request as curl. @param {Request} request */
export function curl({ method, path, body, bytes }) {
  const parts = ["curl", method === "GET" ? "-s" : `-sX ${method}`, quote(location.origin + path)];
  if (token) parts.push('-H "Authorization: Bearer $KICKSTAND_TOKEN"');
  if (body !== undefined) parts.push("-H 'Content-Type: application/json'", `-d ${quote(JSON.stringify(body), true)}`);
  if (!bytes) return parts.join(" ");
  parts.push("-H 'Content-Type: application/octet-stream'", "--data-binary @-");
  return `printf '${escaped(bytes)}' | ${parts.join(" ")}`;
}

/** The stream from just before an event. */
export function curlOf(epoch, seq, origin = location.origin) {
  const stream = `curl -sN ${quote(`${origin}/events?after=${epoch}-${seq - 1}`)}`;
  return token ? `${stream} -H "Authorization: Bearer $KICKSTAND_TOKEN"` : stream;
}

function quote(text, always = false) {
  return always || /[^\w@%+=:,./-]/.test(text) ? `'${text.replaceAll("'", "'\\''")}'` : text;
}

function escaped(bytes) {
  return Array.from(bytes, (byte) => `\\${byte.toString(8).padStart(3, "0")}`).join("");
}

/** Put text on the clipboard; false where the browser does not let us. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false;
  }
}
