import {
  assertEquals,
  assertMatch,
  assertRejects,
  assertThrows,
} from "@std/assert";
import { NVME_OPTIONS } from "../../devices/nvme/options.ts";
import { loadModel } from "../../devices/registry.ts";
import { VIRTIO_BLK_OPTIONS } from "../../devices/virtio_blk/config.ts";
import { VIRTIO_NET_OPTIONS } from "../../devices/virtio_net/config.ts";
import { messageForPeople } from "../../src/runtime/control/suggestion.ts";

Deno.test("messageForPeople tells what a misspelt option or model may have been", async () => {
  const cases: [() => unknown, string][] = [
    [() => VIRTIO_NET_OPTIONS.parse({ hostfdw: "x" }), "hostfwd"],
    [() => VIRTIO_BLK_OPTIONS.parse({ quues: "2" }), "queues"],
    [() => VIRTIO_BLK_OPTIONS.parse({ READONLY: "on" }), "readonly"],
    [() => NVME_OPTIONS.parse({ serail: "1" }), "serial"],
    [() => NVME_OPTIONS.parse({ "ns1.flie": "a" }), "file"],
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
  const error = assertThrows(() => VIRTIO_BLK_OPTIONS.parse({ colour: "red" }));
  assertEquals(await messageForPeople(error), error.message);
  assertEquals(await messageForPeople("text"), "text");
});
