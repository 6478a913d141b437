import { assert, assertEquals } from "@std/assert";
import fc from "fast-check";
import { RAM_IOVA, Rig, S, UNTOUCHED } from "./harness.ts";

const RANDOM_REQUEST = fc.record({
  type: fc.oneof(
    fc.constantFrom(0, 1, 4, 8, 11, 13),
    fc.integer({ min: 0, max: 0xffff_ffff }),
  ),
  sector: fc.oneof(
    fc.bigInt({ min: 0n, max: 2050n }),
    fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
  ),
  body: fc.oneof(
    fc.constantFrom(0, 16, 32, 512, 1024),
    fc.integer({ min: 0, max: 1100 }),
  ),
  writable: fc.oneof(
    fc.constantFrom(1, 21, 513, 1025),
    fc.integer({ min: 1, max: 1100 }),
  ),
  readableCuts: fc.array(fc.integer({ min: 1, max: 600 }), { maxLength: 4 }),
  writableCuts: fc.array(fc.integer({ min: 1, max: 600 }), { maxLength: 4 }),
  seed: fc.oneof(fc.constant(0), fc.nat(255)),
});

type RandomRequest = typeof RANDOM_REQUEST extends fc.Arbitrary<infer R> ? R
  : never;

/** Result that the standard gives a request whose body is one byte over and over; changes `disk`. */
function expected(
  request: RandomRequest,
  disk: Uint8Array,
): { status: number; data: Uint8Array | null } {
  const { type, sector, body, seed } = request;
  const answer = (status: number, data: Uint8Array | null = null) => ({
    status,
    data,
  });
  const inside = (lengthBytes: number) =>
    lengthBytes % 512 === 0 &&
    sector * 512n + BigInt(lengthBytes) <= BigInt(disk.length);
  const at = Number(sector) * 512;
  switch (type) {
    case 0: {
      const length = request.writable - 1;
      return inside(length)
        ? answer(S.OK, disk.slice(at, at + length))
        : answer(S.IOERR);
    }
    case 1:
      if (!inside(body)) return answer(S.IOERR);
      disk.fill(seed, at, at + body);
      return answer(S.OK);
    case 4:
    case 8:
      return answer(S.OK);
    case 11:
    case 13:
      if (body === 0 || body % 16 !== 0 || body > 512) return answer(S.IOERR);
      // Such a body has flags that do not exist, or nothing but empty ranges.
      return answer(seed === 0 ? S.OK : S.UNSUPP);
    default:
      return answer(S.UNSUPP);
  }
}

Deno.test("VirtioBlk does with every request what the standard says", () => {
  fc.assert(
    fc.property(
      fc.array(RANDOM_REQUEST, { minLength: 1, maxLength: 6 }),
      (requests) => {
        using rig = new Rig({ disk: { queueSize: 128, segMax: 126 } });
        const model = rig.backend.bytes.slice();
        const pending = requests.map((request) => {
          const readable = new Uint8Array(16 + request.body).fill(request.seed);
          const view = new DataView(readable.buffer);
          view.setUint32(0, request.type, true);
          view.setBigUint64(8, request.sector, true);
          return rig.queue(readable, request.writable, {
            readable: request.readableCuts,
            writable: request.writableCuts,
          });
        });
        rig.flush();
        rig.backend.finishAll();
        rig.loop.settle();
        const { ring } = rig.queues[0]!;
        const done = new Map<number, number>();
        while (ring.take()) done.set(ring.usedHead, ring.usedLength);
        assertEquals(done.size, requests.length);
        for (const [i, request] of requests.entries()) {
          const written = done.get(pending[i]!.head)!;
          const { status, data } = rig.reply(pending[i]!, written);
          const wanted = expected(request, model);
          assertEquals(status, wanted.status);
          if (wanted.data !== null) assertEquals(data, wanted.data);
          assert(written <= request.writable);
          // What was not written was not touched.
          assert(data.slice(written).every((byte) => byte === UNTOUCHED));
        }
        assertEquals(rig.needsReset, false);
        assertEquals(rig.disk.inFlight, 0);
        assertEquals(rig.backend.bytes, model);
      },
    ),
    { numRuns: 300 },
  );
});

Deno.test("VirtioBlk survives descriptors of any content", () => {
  const descriptor = fc.tuple(
    fc.oneof(
      fc.integer({ min: RAM_IOVA, max: RAM_IOVA + 0x1_0000 }),
      fc.integer({ min: 0, max: 2 ** 53 - 1 }),
    ),
    fc.oneof(
      fc.constantFrom(0, 1, 16, 48, 512),
      fc.integer({ min: 0, max: 0xffff_ffff }),
    ),
    fc.integer({ min: 0, max: 7 }),
    fc.integer({ min: 0, max: 9 }),
  );
  fc.assert(
    fc.property(
      fc.array(descriptor, { minLength: 8, maxLength: 8 }),
      fc.array(fc.integer({ min: 0, max: 8 }), { minLength: 1, maxLength: 4 }),
      (descriptors, heads) => {
        using rig = new Rig({
          disk: { queueSize: 8, segMax: 6 },
          immediate: true,
        });
        const { ring } = rig.queues[0]!;
        for (const [i, parts] of descriptors.entries()) {
          ring.writeRaw(i, ...parts);
        }
        for (const head of heads) ring.makeAvailable(head);
        rig.flush();
        assert(ring.deviceUsedIdx <= heads.length);
        assertEquals(rig.disk.inFlight, 0);
        // Whatever it did to it, a reset brings the disk back.
        rig.bringUp();
        assertEquals(rig.read(0, 512).status, S.OK);
      },
    ),
    { numRuns: 300 },
  );
});
