import {
  assertEquals,
  assertMatch,
  assertRejects,
  assertThrows,
} from "@std/assert";
import { parseNvmeOptions } from "../../devices/nvme/options.ts";
import { loadModel } from "../../devices/registry.ts";
import { parseVirtioBlkOptions } from "../../devices/virtio_blk/config.ts";
import { parseVirtioNetOptions } from "../../devices/virtio_net/config.ts";
import { messageForPeople } from "../../src/runtime/control/suggestion.ts";

Deno.test("messageForPeople tells what a misspelt option or model may have been", async () => {
  const cases: [() => unknown, string][] = [
    [() => parseVirtioNetOptions({ hostfdw: "x" }), "hostfwd"],
    [() => parseVirtioBlkOptions({ quues: "2" }), "queues"],
    [() => parseVirtioBlkOptions({ READONLY: "on" }), "readonly"],
    [() => parseNvmeOptions({ serail: "1" }), "serial"],
    [() => parseNvmeOptions({ "ns1.flie": "a" }), "file"],
  ];
  for (const [parse, meant] of cases) {
    const message = await messageForPeople(assertThrows(parse));
    assertMatch(
      message,
      new RegExp(`^Cannot use .*; did you mean ${meant}\\?$`),
    );
  }
  const error = await assertRejects(() => loadModel("virtio-nte"));
  assertMatch(await messageForPeople(error), /; did you mean virtio-net\?$/);
});

Deno.test("messageForPeople does not guess where nothing is alike", async () => {
  const error = assertThrows(() => parseVirtioBlkOptions({ colour: "red" }));
  assertEquals(await messageForPeople(error), error.message);
  assertEquals(await messageForPeople("text"), "text");
});
