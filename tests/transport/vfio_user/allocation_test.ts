import { assert } from "@std/assert";
import {
  connectUnix,
  MessageHeader,
  NativeBuffer,
} from "../../../src/os/mod.ts";
import { heapGrowthPerOperation } from "../../resources.ts";
import { concat, message, versionMessage, words } from "./raw_client.ts";
import { Rig } from "./rig.ts";

/** Sends the same command over and over, and allocates nothing itself. */
function heapGrowthOf(command: Uint8Array, replyBytes: number): number {
  using rig = new Rig();
  using socket = connectUnix(rig.path);
  using header = new MessageHeader();
  using buffer = new NativeBuffer(1 << 20);
  const { loop } = rig;
  const fd = socket.number;
  // With write_multiple, so that it can be measured too.
  const version = versionMessage('{"capabilities":{"write_multiple":true}}');
  buffer.bytes.set(version);
  header.send(fd, buffer, 0, version.length);
  rig.settle();
  header.receive(fd, buffer, 0, 4096);
  buffer.bytes.set(command);
  const { length } = command;
  let failures = 0;
  const growth = heapGrowthPerOperation(50_000, (operations) => {
    for (let i = 0; i < operations; i++) {
      if (header.send(fd, buffer, 0, length) !== length) failures++;
      loop.turn(0);
      if (header.receive(fd, buffer, 4096, 4096) !== replyBytes) failures++;
    }
  });
  assert(failures === 0, `${failures} exchanges failed`);
  return growth;
}

const commands: [string, Uint8Array, number][] = [
  ["REGION_READ", message(9, words(0x10n, 0, 4)), 36],
  ["REGION_READ of configuration space", message(9, words(0n, 7, 4)), 36],
  ["REGION_WRITE", message(10, concat(words(0x10n, 0, 4), words(7))), 32],
  [
    "REGION_WRITE of all ones",
    message(10, concat(words(0x10n, 0, 8), words(0xffff_ffff, 0xffff_ffff))),
    32,
  ],
  [
    "REGION_WRITE_MULTI",
    message(
      15,
      concat(
        words(2n),
        words(0x10n, 0, 4, 1, 0),
        words(0x14n, 0, 2, 1, 0),
      ),
    ),
    24,
  ],
  ["a refused REGION_READ", message(9, words(0x1000n, 0, 4)), 16],
];

for (const [what, command, replyBytes] of commands) {
  Deno.test(`Session allocates nothing for ${what}`, () => {
    const growth = heapGrowthOf(command, replyBytes);
    assert(growth < 1, `${growth} bytes a message`);
  });
}
