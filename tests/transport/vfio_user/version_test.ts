import { assertEquals, assertThrows } from "@std/assert";
import fc from "fast-check";
import { ErrnoError } from "../../../src/core/errno.ts";
import {
  negotiate,
  type Negotiation,
} from "../../../src/transport/vfio_user/version.ts";

const LIMITS = {
  maxDataXferSize: 1_048_576,
  maxDmaMaps: 65_535,
  maxMsgFds: 16,
};
const QEMU =
  '{"capabilities":{"max_dma_maps":65535,"max_msg_fds":16,"max_data_xfer_size":1048576,' +
  '"migration":{"max_bitmap_size":268435456,"pgsize":4096},"pgsizes":4096,"write_multiple":true}}';

function payload(json: string | null, major = 0, minor = 0): Uint8Array {
  const text = json === null
    ? new Uint8Array(0)
    : new TextEncoder().encode(`${json}\0`);
  return new Uint8Array([major & 255, major >> 8, minor, 0, ...text]);
}

function propose(capabilities: string, limits = LIMITS): Negotiation {
  return negotiate(payload(`{"capabilities":{${capabilities}}}`), limits);
}

function replied({ reply }: Negotiation): Record<string, unknown> {
  assertEquals(reply.at(-1), 0, "ends in NUL");
  assertEquals(reply.indexOf(0, 4), reply.length - 1, "has no other NUL");
  const text = new TextDecoder().decode(reply.subarray(4, -1));
  return JSON.parse(text).capabilities;
}

Deno.test("negotiate answers QEMU within what it accepts", () => {
  const result = negotiate(payload(QEMU), LIMITS);
  assertEquals([...result.reply.subarray(0, 4)], [0, 0, 0, 0]);
  assertEquals(replied(result), {
    max_msg_fds: 16,
    max_data_xfer_size: 1_048_576,
    max_dma_maps: 65_535,
    pgsizes: 4096,
  });
  assertEquals(result.agreement, {
    minor: 0,
    clientMsgFds: 16,
    maxDataXferSize: 1_048_576,
    maxDmaMaps: 65_535,
    writeMultiple: false,
    silent: false,
  });
});

Deno.test("negotiate takes a client that says nothing of capabilities for SPDK", () => {
  const result = negotiate(payload(null, 0, 1), LIMITS);
  assertEquals(result.agreement, {
    minor: 1,
    clientMsgFds: 1,
    maxDataXferSize: 1_048_576,
    maxDmaMaps: 65_535,
    writeMultiple: false,
    silent: true,
  });
  assertEquals(replied(result).max_msg_fds, 16);
});

Deno.test("negotiate takes empty capabilities for the defaults", () => {
  for (const json of ["{}", '{"capabilities":{}}']) {
    const { agreement } = negotiate(payload(json), LIMITS);
    assertEquals(agreement.clientMsgFds, 1);
    assertEquals(agreement.maxDataXferSize, 1_048_576);
    assertEquals(agreement.silent, false);
  }
});

Deno.test("negotiate takes the lower of both sides' limits", () => {
  const low = { maxDataXferSize: 4096, maxDmaMaps: 10, maxMsgFds: 4 };
  const ours = propose(
    '"max_msg_fds":8,"max_data_xfer_size":65536,"max_dma_maps":99',
    low,
  );
  assertEquals(ours.agreement.maxDataXferSize, 4096);
  assertEquals(ours.agreement.maxDmaMaps, 10);
  assertEquals(ours.agreement.clientMsgFds, 8, "what it takes is its to say");
  assertEquals(replied(ours).max_msg_fds, 4);
  const theirs = propose(
    '"max_msg_fds":2,"max_data_xfer_size":512,"max_dma_maps":3',
  );
  assertEquals(theirs.agreement.maxDataXferSize, 512);
  assertEquals(theirs.agreement.maxDmaMaps, 3);
  assertEquals(replied(theirs), {
    max_msg_fds: 2,
    max_data_xfer_size: 512,
    max_dma_maps: 3,
    pgsizes: 4096,
  });
});

Deno.test("negotiate offers write_multiple to whoever proposes it and is not QEMU", () => {
  assertEquals(propose('"write_multiple":true').agreement.writeMultiple, true);
  assertEquals(replied(propose('"write_multiple":true')).write_multiple, true);
  assertEquals(
    propose('"write_multiple":false').agreement.writeMultiple,
    false,
  );
  assertEquals(propose("").agreement.writeMultiple, false);
  assertEquals("write_multiple" in replied(propose("")), false);
  const migrating = '"write_multiple":true,"migration":{"pgsize":4096}';
  assertEquals(propose(migrating).agreement.writeMultiple, true);
});

Deno.test("negotiate answers a higher minor with its own and a lower one with that", () => {
  const minor = (n: number) =>
    negotiate(payload("{}", 0, n), LIMITS).agreement.minor;
  assertEquals([minor(0), minor(1), minor(2), minor(255)], [0, 1, 1, 1]);
});

Deno.test("negotiate ignores capabilities it does not know or offer", () => {
  const { agreement } = propose(
    '"what":[1],"twin_socket":{"supported":true},"migration":{}',
  );
  assertEquals(agreement.clientMsgFds, 1);
});

Deno.test("negotiate refuses what is not sound", () => {
  const bad: [string, Uint8Array][] = [
    ["nothing", new Uint8Array(0)],
    ["three bytes", new Uint8Array(3)],
    ["major 1", payload("{}", 1)],
    ["major 256", payload("{}", 256)],
    ["no NUL", payload("{}").slice(0, -1)],
    ["NUL alone", payload("")],
    ["two NULs", payload("{}\0")],
    ["not UTF-8", new Uint8Array([0, 0, 0, 0, 0x22, 0xff, 0x22, 0])],
  ];
  for (
    const json of ["{", '"', "[]", "1", "null", "true", '{"capabilities":']
  ) {
    bad.push([json, payload(json)]);
  }
  const capabilities = [
    '"23"',
    "null",
    "[]",
    '{"max_msg_fds":"foo"}',
    '{"max_msg_fds":-1}',
    '{"max_msg_fds":1.5}',
    '{"max_msg_fds":null}',
    '{"max_msg_fds":1e999}',
    '{"max_data_xfer_size":0}',
    '{"max_data_xfer_size":"1"}',
    '{"max_dma_maps":0}',
    '{"max_dma_maps":[]}',
    '{"pgsizes":0}',
    '{"pgsizes":2048}',
    '{"pgsizes":true}',
    '{"write_multiple":1}',
    '{"write_multiple":null}',
    '{"migration":"23"}',
    '{"migration":{"pgsize":"foo"}}',
    '{"migration":{"max_bitmap_size":-1}}',
    '{"twin_socket":1}',
    '{"twin_socket":{"supported":"yes"}}',
  ];
  for (const it of capabilities) {
    bad.push([it, payload(`{"capabilities":${it}}`)]);
  }
  for (const [what, bytes] of bad) {
    const error = assertThrows(
      () => negotiate(bytes, LIMITS),
      ErrnoError,
      undefined,
      what,
    );
    assertEquals(error.code, "EINVAL", what);
  }
});

Deno.test("negotiate answers any bytes or refuses them with EINVAL", () => {
  const json = fc.json().map((it) => payload(`{"capabilities":${it}}`));
  const capabilities = fc.dictionary(
    fc.constantFrom(
      "max_msg_fds",
      "max_data_xfer_size",
      "max_dma_maps",
      "pgsizes",
      "write_multiple",
      "migration",
      "twin_socket",
      "__proto__",
    ),
    fc.jsonValue(),
  ).map((it) => payload(JSON.stringify({ capabilities: it })));
  fc.assert(
    fc.property(
      fc.oneof(fc.uint8Array({ maxLength: 64 }), json, capabilities),
      (bytes) => {
        try {
          const result = negotiate(bytes, LIMITS);
          const { max_msg_fds } = replied(result);
          return typeof max_msg_fds === "number" && max_msg_fds <= 16 &&
            result.agreement.maxDataXferSize >= 1;
        } catch (error) {
          return error instanceof ErrnoError && error.code === "EINVAL";
        }
      },
    ),
    { numRuns: 2000 },
  );
});
