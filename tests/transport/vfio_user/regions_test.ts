import { assertEquals, assertThrows } from "@std/assert";
import {
  closeFd,
  createEventFd,
  Mapping,
  SyscallError,
  truncateFd,
} from "../../../src/os/mod.ts";
import { concat, message, type RawClient, words } from "./raw_client.ts";
import { openFds, Rig } from "./rig.ts";

const EINVAL = 22;

function regionInfo(
  rig: Rig,
  client: RawClient,
  index: number,
  argsz = 32,
): {
  errno: number;
  fields: number[];
  payload: DataView;
  fds: readonly number[];
} {
  const reply = client.request(
    rig.loop,
    message(5, words(argsz, 0, index, 0, 0n, 0n)),
  );
  const { errno, payload, fds } = reply;
  const fields = errno !== 0 ? [] : [
    payload.getUint32(0, true),
    payload.getUint32(4, true),
    payload.getUint32(8, true),
    payload.getUint32(12, true),
    Number(payload.getBigUint64(16, true)),
    Number(payload.getBigUint64(24, true)),
  ];
  return { errno, fields, payload, fds };
}

function read(
  rig: Rig,
  client: RawClient,
  region: number,
  offset: bigint,
  count: number,
): { errno: number; bytes: number[] } {
  const reply = client.request(
    rig.loop,
    message(9, words(offset, region, count)),
  );
  if (reply.errno !== 0) return { errno: reply.errno, bytes: [] };
  const payload = new Uint8Array(reply.payload.buffer);
  assertEquals(payload.slice(0, 16), words(offset, region, count));
  return { errno: 0, bytes: [...payload.slice(16)] };
}

function write(
  rig: Rig,
  client: RawClient,
  region: number,
  offset: bigint,
  bytes: number[],
  count = bytes.length,
): number {
  const header = words(offset, region, count);
  const reply = client.request(
    rig.loop,
    message(10, concat(header, new Uint8Array(bytes))),
  );
  const payload = new Uint8Array(reply.payload.buffer);
  assertEquals(payload, reply.errno === 0 ? header : new Uint8Array(0));
  return reply.errno;
}

Deno.test("DEVICE_GET_REGION_INFO describes all nine regions", () => {
  using rig = new Rig();
  using client = rig.client();
  const sizes = [0x1000, 0x100, 0x8000, 0, 0x1000, 0, 0, 4096, 0];
  sizes.forEach((size, index) => {
    if (index === 2) return;
    const { fields, payload, fds } = regionInfo(rig, client, index);
    assertEquals(fields, [32, size === 0 ? 0 : 3, index, 0, size, 0]);
    assertEquals([payload.byteLength, fds.length], [32, 0]);
  });
});

Deno.test("DEVICE_GET_REGION_INFO refuses short requests and unknown regions, takes long ones", () => {
  using rig = new Rig();
  using client = rig.client();
  assertEquals(regionInfo(rig, client, 9).errno, EINVAL);
  assertEquals(regionInfo(rig, client, 0xffff_ffff).errno, EINVAL);
  assertEquals(regionInfo(rig, client, 0, 31).errno, EINVAL);
  for (let length = 0; length < 32; length += 4) {
    const short = words(32, 0, 0, 0, 0n, 0n).slice(0, length);
    assertEquals(client.request(rig.loop, message(5, short)).errno, EINVAL);
  }
  // SPDK's host library pads to a page.
  const padded = new Uint8Array(4064);
  padded.set(words(4064, 0, 7, 0));
  const reply = client.request(rig.loop, message(5, padded));
  assertEquals([reply.errno, reply.payload.byteLength], [0, 32]);
});

Deno.test("DEVICE_GET_REGION_INFO tells the mappable areas when there is room, with a descriptor each time", () => {
  using rig = new Rig();
  using client = rig.client();
  const before = openFds();
  const first = regionInfo(rig, client, 2, 79);
  assertEquals(first.fields, [80, 7, 2, 0, 0x8000, 0]);
  assertEquals([first.payload.byteLength, first.fds.length], [32, 1]);
  const second = regionInfo(rig, client, 2, 80);
  assertEquals(second.fields, [80, 15, 2, 32, 0x8000, 0]);
  assertEquals(
    new Uint8Array(second.payload.buffer).slice(32),
    concat(
      new Uint8Array([1, 0, 1, 0]),
      words(0, 2, 0, 0x1000n, 0x1000n, 0x4000n, 0x2000n),
    ),
  );
  assertEquals(second.fds.length, 1);
  [...first.fds, ...second.fds].forEach(closeFd);
  assertEquals(openFds(), before);
});

Deno.test("DEVICE_GET_REGION_INFO gives a client that is silent on capabilities a descriptor an area", () => {
  using rig = new Rig();
  using client = rig.client(null);
  const { fields, fds } = regionInfo(rig, client, 2, 4096);
  assertEquals(fields[1], 15);
  assertEquals(fds.length, 2);
  fds.forEach(closeFd);
});

Deno.test("DEVICE_GET_REGION_INFO: the descriptor is the device's memory, each area at its offset", () => {
  using rig = new Rig();
  using client = rig.client();
  rig.device.areas[0]!.bytes[5] = 55;
  const { fds } = regionInfo(rig, client, 2, 80);
  using map = new Mapping({ fd: fds[0]!, offset: 0x1000, lengthBytes: 0x4000 });
  closeFd(fds[0]!);
  const bytes = new Uint8Array(map.buffer);
  assertEquals(bytes[5], 55);
  bytes[0x3000] = 33;
  assertEquals(rig.device.areas[1]!.bytes[0], 33);
  assertEquals(read(rig, client, 2, 0x4000n, 2).bytes, [33, 0]);
  assertEquals(write(rig, client, 2, 0x1005n, [9]), 0);
  assertEquals(bytes[5], 9);
});

Deno.test("DEVICE_GET_REGION_INFO: a client cannot cut the file, nor reach the next client's", () => {
  using rig = new Rig();
  const first = rig.client();
  const { fds } = regionInfo(rig, first, 2, 80);
  assertThrows(() => truncateFd(fds[0]!, 0), SyscallError, "EPERM");
  assertThrows(() => truncateFd(fds[0]!, 0x10000), SyscallError, "EPERM");
  using map = new Mapping({ fd: fds[0]!, offset: 0x1000, lengthBytes: 0x1000 });
  closeFd(fds[0]!);
  first.close();
  rig.settle();
  using second = rig.client();
  assertEquals(write(rig, second, 2, 0x1000n, [77]), 0);
  assertEquals(rig.device.areas[0]!.bytes[0], 77);
  assertEquals(new Uint8Array(map.buffer)[0], 0);
});

Deno.test("REGION_READ and REGION_WRITE reach registers and configuration space", () => {
  using rig = new Rig();
  using client = rig.client();
  assertEquals(write(rig, client, 0, 0x11n, [1, 2, 3, 4, 5, 6, 7]), 0);
  assertEquals(rig.device.writes, [
    "0:17:1:1",
    "0:18:2:770",
    "0:20:4:117835012",
  ]);
  assertEquals(read(rig, client, 0, 0x10n, 9).bytes, [
    0,
    1,
    2,
    3,
    4,
    5,
    6,
    7,
    0,
  ]);
  assertEquals(read(rig, client, 7, 0n, 4).bytes, [0xf4, 0x1a, 0xf0, 0x10]);
  assertEquals(write(rig, client, 7, 0x3cn, [11]), 0);
  assertEquals(read(rig, client, 7, 0x3cn, 1).bytes, [11]);
  assertEquals(read(rig, client, 0, 0xfffn, 1).errno, 0, "the last byte");
  assertEquals(read(rig, client, 7, 0xffcn, 4).errno, 0, "the last word");
});

Deno.test("REGION_READ and REGION_WRITE refuse what is outside", () => {
  using rig = new Rig();
  using client = rig.client();
  const outside: [number, bigint, number][] = [
    [0, 0x1000n, 1],
    [0, 0xfffn, 2],
    [0, 0n, 0x1001],
    [0, 0xffff_ffff_ffff_ffffn, 1],
    [0, 0xffff_ffff_ffff_fffcn, 8],
    [0, 0x1_0000_0000n, 1],
    [3, 0n, 1],
    [6, 0n, 1],
    [7, 4096n, 1],
    [8, 0n, 1],
    [9, 0n, 1],
    [0xffff_ffff, 0n, 1],
  ];
  for (const [region, offset, count] of outside) {
    const what = `${region} ${offset} ${count}`;
    assertEquals(read(rig, client, region, offset, count).errno, EINVAL, what);
    const bytes = new Array<number>(count).fill(0);
    assertEquals(write(rig, client, region, offset, bytes), EINVAL, what);
  }
  assertEquals(rig.device.writes, []);
});

Deno.test("REGION_READ and REGION_WRITE refuse sizes that do not fit", () => {
  using rig = new Rig({ limits: { maxDataXferSize: 64 } });
  using client = rig.client();
  assertEquals(read(rig, client, 0, 0n, 64).errno, 0);
  assertEquals(read(rig, client, 0, 0n, 65).errno, EINVAL);
  assertEquals(write(rig, client, 0, 0n, new Array(64).fill(0)), 0);
  assertEquals(write(rig, client, 0, 0n, new Array(65).fill(0)), EINVAL);
  assertEquals(write(rig, client, 0, 0n, [1, 2, 3, 4], 3), EINVAL);
  assertEquals(write(rig, client, 0, 0n, [1, 2, 3, 4], 5), EINVAL);
  assertEquals(write(rig, client, 0, 0n, [], 4), EINVAL);
  assertEquals(read(rig, client, 0, 0n, 0), { errno: 0, bytes: [] });
  assertEquals(write(rig, client, 0, 0n, []), 0);
  for (const command of [9, 10]) {
    for (let length = 0; length < 16; length += 4) {
      const short = words(0n, 0, 4).slice(0, length);
      const reply = client.request(rig.loop, message(command, short));
      assertEquals(reply.errno, EINVAL);
    }
  }
});

Deno.test("REGION_READ takes the largest transfer that was agreed upon", () => {
  using rig = new Rig();
  using client = rig.client('{"capabilities":{"max_data_xfer_size":4096}}');
  assertEquals(read(rig, client, 0, 0n, 4096).bytes.length, 4096);
  assertEquals(read(rig, client, 2, 0n, 4097).errno, EINVAL);
});

Deno.test("REGION_READ closes descriptors that came along", () => {
  using rig = new Rig();
  using client = rig.client();
  using fd = createEventFd();
  const before = openFds();
  const reply = client.request(rig.loop, message(9, words(0n, 0, 4)), [
    fd.number,
  ]);
  assertEquals(reply.errno, 0);
  assertEquals(openFds(), before);
});

const MULTI = '{"capabilities":{"write_multiple":true}}';

function entry(
  offset: bigint,
  region: number,
  bytes: number[],
  count?: number,
) {
  const data = new Uint8Array(8);
  data.set(bytes);
  return concat(words(offset, region, count ?? bytes.length), data);
}

function writeMulti(
  rig: Rig,
  client: RawClient,
  entries: Uint8Array[],
  count = BigInt(entries.length),
): { errno: number; done: number } {
  const payload = concat(words(count), ...entries);
  const reply = client.request(rig.loop, message(15, payload));
  return {
    errno: reply.errno,
    done: reply.errno === 0
      ? Number(reply.payload.getBigUint64(0, true))
      : reply.payload.byteLength,
  };
}

Deno.test("REGION_WRITE_MULTI does several writes in order", () => {
  using rig = new Rig();
  using client = rig.client(MULTI);
  const result = writeMulti(rig, client, [
    entry(0x10n, 0, [1]),
    entry(0x20n, 1, [2, 0, 0, 0]),
    entry(0x18n, 0, [1, 2, 3, 4, 5, 6, 7, 8]),
  ]);
  assertEquals(result, { errno: 0, done: 3 });
  assertEquals(rig.device.writes, [
    "0:16:1:1",
    "1:32:4:2",
    "0:24:4:67305985",
    "0:28:4:134678021",
  ]);
  assertEquals(writeMulti(rig, client, []), { errno: 0, done: 0 });
});

Deno.test("REGION_WRITE_MULTI refuses all when one is not sound", () => {
  using rig = new Rig();
  using client = rig.client(MULTI);
  const good = entry(0x10n, 0, [1]);
  const refused = { errno: EINVAL, done: 0 };
  const bad = [
    entry(0x1000n, 0, [1]),
    entry(0xfffn, 0, [1, 2]),
    entry(0n, 9, [1]),
    entry(0n, 0, []),
    entry(0n, 0, [1], 9),
  ];
  for (const it of bad) {
    assertEquals(writeMulti(rig, client, [good, it]), refused);
  }
  assertEquals(writeMulti(rig, client, [good], 2n), refused);
  assertEquals(writeMulti(rig, client, [good], 0n), refused);
  assertEquals(
    writeMulti(rig, client, [good], 0xffff_ffff_ffff_ffffn),
    refused,
  );
  assertEquals(client.request(rig.loop, message(15, words(0))).errno, EINVAL);
  assertEquals(rig.device.writes, []);
});

Deno.test("REGION_WRITE_MULTI is refused when it was not agreed upon", () => {
  using rig = new Rig();
  using client = rig.client();
  assertEquals(
    writeMulti(rig, client, [entry(0x10n, 0, [1])]).errno,
    EINVAL,
  );
});
