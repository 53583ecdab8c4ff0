// A program on the schema alone: the types are generated, and a misspelt path or field does not compile.
import createClient from "openapi-fetch";
import type { components, paths } from "./schema.js";

declare const process: { argv: string[] };
type Event = components["schemas"]["Event"];
type RunDone = components["schemas"]["RunDone"];

/** What an event says, by its name: the union is told apart by `event`. */
export function told(event: Event): string {
  switch (event.event) {
    case "kvm_userspace_exit":
      return `vCPU ${event.data.vcpu} left with ${event.data.reason}`;
    case "vcpu_state":
      return `${event.data.old} to ${event.data.state}`;
    case "kvm_memslot":
      return `slot ${event.data.slot}: ${event.data.change}, ${event.data.npages} pages`;
    default:
      return event.event;
  }
}

export async function kickOnce(baseUrl: string): Promise<RunDone | undefined> {
  const client = createClient<paths>({ baseUrl });
  const made = await client.POST("/vms", { body: { id: "typed", vcpus: 1, programs: [[["out", 0x3f8, 65], ["hlt"]]] } });
  if (made.error) throw new Error(`${made.error.errno}: ${made.error.detail}`);
  const params = { path: { vm: made.data.id } };
  const kicked = await client.POST("/vms/{vm}/kick", { params });
  await client.POST("/vms/{vm}/resume", { params });
  const ran = await client.POST("/vms/{vm}/vcpu/{id}/run", { params: { path: { ...params.path, id: 0 } } });
  await client.DELETE("/vms/{vm}", { params });
  return kicked.data?.changed ? ran.data : undefined;
}

if (process.argv[2]) {
  const done = await kickOnce(process.argv[2]);
  console.log(done?.exit_reason, done?.io?.data);
}

/** The optional argument of a step may be left out. */
export const program: components["schemas"]["Program"] = [["out", 0x3f8, 65], ["read", "0x1000", 4], ["hlt"]];
// @ts-expect-error there is no such path
export type Nowhere = paths["/vms/{vm}/kikc"];
