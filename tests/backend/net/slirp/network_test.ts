import { assert, assertEquals } from "@std/assert";
import { Errno } from "../../../../src/core/errno.ts";
import { NativeBuffer, socketPair } from "../../../../src/os/mod.ts";
import { NetOffload } from "../../../../src/backend/net/contract.ts";
import { Access } from "../../../../src/memory/guest_memory.ts";
import { FrameStream } from "../../../../src/backend/net/socket/frame_stream.ts";
import { NET_OPTIONS } from "../../../../src/backend/net/options.ts";
import { SlirpNetwork } from "../../../../src/backend/net/slirp/network.ts";
import { SlirpPage } from "../../../../src/backend/net/slirp/page.ts";
import { openLibslirp } from "../../../../src/backend/net/slirp/symbols.ts";
import { heapGrowthPerOperation, openFds } from "../../../resources.ts";
import { PATIENCE_MS } from "../../../until.ts";
import { Host } from "../card.ts";
import {
  ACK,
  arpRequest,
  bytes,
  ethernet,
  GUEST_MAC,
  parseIp,
  tcp,
} from "../frames.ts";
import { testLibslirp } from "../libslirp.ts";
import { DGRAM, HostSocket } from "../sockets.ts";
import type { OptionTexts } from "../../../../src/core/options.ts";
import type { UserNetOptions } from "../../../../src/backend/net/user/driver.ts";

const HEADER_BYTES = 12;
const GUEST = "10.0.2.15";
const ROUTER = "10.0.2.2";

const libslirp = await testLibslirp();

// libffi opens the executable for its trampolines when the first callback is made, and keeps it open.
new Deno.UnsafeCallback({ parameters: [], result: "void" }, () => {}).close();

/** A network that is turned by hand, and the card's end of its wire. */
class Wire implements Disposable {
  readonly host = new Host();
  readonly page: SlirpPage;
  readonly card: FrameStream;
  readonly network: SlirpNetwork;

  constructor(values: OptionTexts = {}) {
    if ("skip" in libslirp) throw new Error(libslirp.skip);
    const library = openLibslirp(libslirp.library);
    if ("reason" in library) throw new Error(library.reason);
    this.page = new SlirpPage();
    const [ours, theirs] = socketPair();
    this.card = new FrameStream(ours, HEADER_BYTES);
    this.network = new SlirpNetwork({
      options: NET_OPTIONS.parse(values) as UserNetOptions,
      mtu: 1500,
      library,
      socket: theirs,
      page: this.page,
      onGuestError: () => {},
    });
  }

  /** @param header Of virtio-net; one that asks for nothing unless told */
  send(frame: Uint8Array, header = new Uint8Array(HEADER_BYTES)): void {
    const { memory } = this.host;
    const list = memory.createScatterGather(1);
    memory.write(0, header);
    memory.write(HEADER_BYTES, frame);
    memory.translate(0, HEADER_BYTES + frame.length, Access.READ, list);
    assertEquals(this.card.send(list), 0);
  }

  /** All frames that have come. */
  receive(): Uint8Array[] {
    return this.receiveWithHeaders().map((all) => all.subarray(HEADER_BYTES));
  }

  /** The same with the virtio-net header of each. */
  receiveWithHeaders(): Uint8Array[] {
    const { memory } = this.host;
    const into = memory.createScatterGather(1);
    memory.translate(1 << 16, 1 << 16, Access.WRITE, into);
    const frames: Uint8Array[] = [];
    this.card.onReadable();
    for (let n; (n = this.card.receive(into)) !== -Errno.EAGAIN;) {
      const frame = new Uint8Array(n);
      memory.read(1 << 16, frame);
      frames.push(frame);
    }
    return frames;
  }

  turnUntil(what: string, done: () => boolean): void {
    const deadline = performance.now() + PATIENCE_MS;
    while (!done()) {
      assert(performance.now() < deadline, what);
      this.network.turn(20);
    }
  }

  [Symbol.dispose](): void {
    this.network.close();
    this.card.close();
    this.page.close();
    this.host[Symbol.dispose]();
  }
}

function wireTest(
  name: string,
  values: () => OptionTexts,
  run: (wire: Wire, values: OptionTexts) => void,
): void {
  const reason = "skip" in libslirp ? ` (ignored: ${libslirp.skip})` : "";
  Deno.test({
    name: `SlirpNetwork ${name}${reason}`,
    ignore: reason !== "",
    fn() {
      const before = openFds();
      {
        const given = values();
        using wire = new Wire(given);
        run(wire, given);
      }
      assertEquals(openFds(), before);
    },
  });
}

function join(wire: Wire): void {
  wire.send(arpRequest(GUEST, ROUTER));
  wire.turnUntil("ARP reply", () => wire.receive().length > 0);
}

/** Has the network give segments of one flow, as libslirp would. */
function give(wire: Wire, count: number): void {
  using memory = new NativeBuffer(2048);
  for (let i = 0; i < count; i++) {
    const fields = {
      ...{ srcPort: 80, dstPort: 1234, seq: 5000 + i * 1460, ack: 7 },
      ...{ flags: ACK, data: new Uint8Array(1460).fill(i) },
    };
    const frame = ethernet(GUEST_MAC, 0x0800, tcp(ROUTER, GUEST, fields));
    memory.bytes.set(frame);
    wire.network.onFrame(memory.hva, frame.length);
  }
}

wireTest(
  "gives one segment in place of many to a driver that takes such",
  () => ({}),
  (wire) => {
    const { TSO4, CSUM } = NetOffload;
    for (
      const [offloads, lengths, flags] of [
        [0, [1526, 1526, 1526], 0],
        [CSUM, [1526, 1526, 1526], 2],
        [CSUM | TSO4, [66 + 3 * 1460], 1],
      ] as const
    ) {
      wire.page.offloads = offloads;
      give(wire, 3);
      const all: Uint8Array[] = [];
      wire.turnUntil("frames", () => {
        all.push(...wire.receiveWithHeaders());
        return all.length === lengths.length;
      });
      assertEquals(all.map((each) => each.length), [...lengths]);
      assert(all.every((each) => each[0] === flags));
      const data = all.flatMap((each) => [...each.subarray(66)]);
      assertEquals(data.map((_, i) => Math.floor(i / 1460)), data);
    }
  },
);

wireTest("joins nothing to what has left", () => ({}), (wire) => {
  wire.page.offloads = NetOffload.CSUM | NetOffload.TSO4;
  // More than both buffers between the two hold: the first have gone when the last come, some find no room.
  give(wire, 400);
  let payloadBytes = 0;
  let frames = 0;
  wire.turnUntil("all", () => {
    for (const each of wire.receiveWithHeaders()) {
      const view = new DataView(each.buffer, each.byteOffset);
      assertEquals(view.getUint16(12 + 16), each.length - 26);
      const first = (view.getUint32(12 + 38) - 5000) / 1460;
      const data = each.subarray(66);
      assert(data.every((b, i) => b === (first + Math.floor(i / 1460)) % 256));
      payloadBytes += data.length;
      frames++;
    }
    return payloadBytes + 1460 * wire.page.counters()["rxDropped"]! ===
      400 * 1460;
  });
  assert(frames >= payloadBytes / 65_535 && frames < payloadBytes / 1460 / 10);
});

wireTest("sleeps when nothing is connected", () => ({}), (wire) => {
  join(wire);
  for (let i = 0; i < 10; i++) wire.network.turn(0);
  assertEquals(wire.network.turn(600), false);
});

wireTest("ends with the card", () => ({}), (wire) => {
  join(wire);
  wire.card.close();
  wire.turnUntil("the end", () => wire.network.ended);
});

wireTest(
  "stops reading from the host while the card takes nothing, and goes on after",
  () => ({ hostfwd: `udp:127.0.0.1:${HostSocket.freePort(DGRAM)}-:7` }),
  (wire, values) => {
    join(wire);
    const port = Number(/:(\d+)-/.exec(values.hostfwd as string)![1]);
    using client = HostSocket.connect(DGRAM, port);
    const filling = new Uint8Array(1400);
    // Far more than the socket and the network keep; the rest is lost where the host's programs know of it.
    for (let i = 0; i < 3000; i++) {
      client.write(filling);
      wire.network.turn(0);
    }
    assertEquals(wire.network.turn(0), false);
    assertEquals(wire.page.counters().rxDropped, 0);
    const waiting = wire.receive().length;
    assert(waiting > 50 && waiting < 2000, `${waiting} frames waited`);
    let found = false;
    wire.turnUntil("what is sent now", () => {
      client.write(bytes(0xab, 0xcd));
      found ||= wire.receive().some((frame) => {
        const payload = parseIp(frame)?.payload;
        return payload?.[8] === 0xab && payload[9] === 0xcd;
      });
      return found;
    });
    assertEquals(wire.page.counters().rxDropped, 0);
  },
);

wireTest("takes frames without allocating", () => ({}), (wire) => {
  const { memory } = wire.host;
  // Zeroes are a frame of a type that libslirp ignores.
  const frame = memory.createScatterGather(1);
  memory.translate(0, 1514, Access.READ, frame);
  const growth = heapGrowthPerOperation(50_000, (operations) => {
    for (let i = 0; i < operations; i += 32) {
      for (let k = 0; k < 32; k++) wire.card.send(frame, true);
      wire.card.flush();
      wire.network.turn(0);
    }
  });
  assert(growth < 1, `${growth} bytes a frame`);
});
