import { assert, assertEquals, assertThrows } from "@std/assert";
import { Errno, ErrnoError } from "../../../../src/core/errno.ts";
import { openTap } from "../../../../src/os/mod.ts";
import { Access } from "../../../../src/memory/guest_memory.ts";
import type { NetPeer } from "../../../../src/backend/net/contract.ts";
import { openNetBackend } from "../../../../src/backend/net/open.ts";
import { NET_OPTIONS } from "../../../../src/backend/net/options.ts";
import type { TapBackend } from "../../../../src/backend/net/tap/tap.ts";
import { openFds } from "../../../resources.ts";
import { Host } from "../card.ts";
import {
  arpRequest,
  ethernet,
  parseIp,
  parseTcp,
  ping,
  tcp,
} from "../frames.ts";
import { NetworkNamespace, tapTests } from "../netns.ts";

const PAIRS = 4;
const HEADER_BYTES = 12;
const namespaceTest = tapTests(import.meta.url);

function tapTest(
  name: string,
  run: (host: Host, namespace: NetworkNamespace) => void,
): void {
  namespaceTest(`TapBackend ${name}`, () => {
    const before = openFds();
    {
      using namespace = new NetworkNamespace();
      using host = new Host(1500, PAIRS);
      run(host, namespace);
    }
    assertEquals(openFds(), before);
  });
}

function open(host: Host, ifname = "obtap0"): TapBackend {
  const options = NET_OPTIONS.parse({ net: "tap", ifname });
  return openNetBackend(options, host.context) as TapBackend;
}

/** Notes on which pairs frames wait. */
class Listener implements NetPeer {
  readonly readable = new Set<number>();

  onReadable(pair: number): void {
    this.readable.add(pair);
  }

  onWritable(): void {}
}

function send(
  host: Host,
  backend: TapBackend,
  pair: number,
  frame: Uint8Array,
  header: Uint8Array = new Uint8Array(HEADER_BYTES),
): number {
  const list = host.memory.createScatterGather(2);
  host.memory.write(0, header);
  host.memory.write(HEADER_BYTES, frame);
  host.memory.translate(0, HEADER_BYTES + frame.length, Access.READ, list);
  return backend.send(list, pair);
}

/** Takes all frames of a pair, with their headers. */
function drain(host: Host, backend: TapBackend, pair: number): Uint8Array[] {
  const list = host.memory.createScatterGather(1);
  host.memory.translate(65536, 65536, Access.WRITE, list);
  const frames: Uint8Array[] = [];
  for (let n; (n = backend.receive(list, pair)) >= 0;) {
    const bytes = new Uint8Array(n);
    host.memory.read(65536, bytes);
    frames.push(bytes);
  }
  return frames;
}

function drainAll(host: Host, backend: TapBackend): Uint8Array[][] {
  return Array.from({ length: PAIRS }, (_, i) => drain(host, backend, i));
}

/** The host's address on the network, as its answer to an ARP request tells. */
function hostMac(host: Host, backend: TapBackend): Uint8Array {
  send(host, backend, 0, arpRequest("192.0.2.2", "192.0.2.1"));
  const reply = drainAll(host, backend).flat()
    .find((bytes) => bytes[HEADER_BYTES + 13] === 6)!;
  return reply.slice(HEADER_BYTES + 6, HEADER_BYTES + 12);
}

tapTest("with several pairs leaves nothing behind", (host, namespace) => {
  const backend = open(host);
  assertEquals(backend.queuePairs, PAIRS);
  assertEquals(namespace.isUp("obtap0"), true);
  backend.close();
  assertEquals(namespace.exists("obtap0"), false);
  assertEquals(host.warnings, []);
});

tapTest("lets the kernel number an interface with several pairs", (host) => {
  using _closing = closing(open(host, "ob%d"));
  assertEquals(_closing.backend.ifname, "ob0");
});

tapTest(
  "gives the answers to a flow on the pair that it came on",
  (host, namespace) => {
    using open1 = closing(open(host));
    const { backend } = open1;
    const listener = new Listener();
    backend.start(listener);
    namespace.setAddress("obtap0", "192.0.2.1");
    const mac = hostMac(host, backend);
    assertEquals(backend.setQueuePairs(PAIRS), 0);
    for (let pair = 0; pair < PAIRS; pair++) {
      const syn = ethernet(
        mac,
        0x0800,
        tcp("192.0.2.2", "192.0.2.1", {
          srcPort: 1000 + pair,
          dstPort: 9,
          seq: 1,
          ack: 0,
          flags: 2,
          data: new Uint8Array(0),
        }),
      );
      // The kernel answers the first one before it has noted where it came from.
      send(host, backend, pair, syn);
      drainAll(host, backend);
      listener.readable.clear();
      send(host, backend, pair, syn);
      for (let i = 0; i < 3; i++) host.loop.turn(0);
      assert(listener.readable.has(pair));
      const answered = drainAll(host, backend).map((frames) =>
        frames.some((bytes) => parseTcp(bytes.slice(HEADER_BYTES)) !== null)
      );
      assertEquals(answered, [0, 1, 2, 3].map((i) => i === pair));
    }
    backend.stop();
  },
);

tapTest("receives on the first pair only, until told", (host, namespace) => {
  using open1 = closing(open(host));
  const { backend } = open1;
  const listener = new Listener();
  backend.start(listener);
  namespace.setAddress("obtap0", "192.0.2.1");
  for (const pairs of [1, 3, 2, PAIRS, 1]) {
    assertEquals(backend.setQueuePairs(pairs), 0);
    // A pair that was given up still sends.
    for (let pair = 0; pair < PAIRS; pair++) {
      assert(
        send(host, backend, pair, arpRequest("192.0.2.2", "192.0.2.1")) > 0,
      );
    }
    const counts = drainAll(host, backend).map((frames) => frames.length);
    assertEquals(counts.slice(pairs).every((n) => n === 0), true, `${counts}`);
    assertEquals(counts.reduce((a, b) => a + b) >= PAIRS, true, `${counts}`);
  }
  backend.stop();
});

tapTest(
  "with several pairs survives the deletion of its interface and says so once",
  (host, namespace) => {
    using open1 = closing(open(host));
    const { backend } = open1;
    backend.start(new Listener());
    backend.setQueuePairs(3);
    namespace.delete("obtap0");
    for (let i = 0; i < 5; i++) host.loop.turn(0);
    assertEquals(host.warnings.length, 1);
    assertEquals(host.loop.turn(0), false);
    assert(backend.setQueuePairs(2) < 0);
    assertEquals(host.loop.turn(0), false);
  },
);

tapTest("says that an interface has one queue, or several", (host) => {
  const single = openTap("obtap0", HEADER_BYTES);
  try {
    const error = assertThrows(() => open(host), ErrnoError);
    assertEquals(error.errno, Errno.EINVAL);
    assert(error.message.includes("multi_queue"), error.message);
  } finally {
    single.fd.close();
  }
  const several = openTap("obtap1", HEADER_BYTES, true);
  try {
    const { queuePairs: _, ...context } = host.context;
    const options = NET_OPTIONS.parse({ net: "tap", ifname: "obtap1" });
    const error = assertThrows(
      () => openNetBackend(options, context),
      ErrnoError,
    );
    assert(error.message.includes("no single-queue TAP"), error.message);
  } finally {
    several.fd.close();
  }
});

tapTest("knows what the kernel can leave to it", (host) => {
  using open1 = closing(open(host));
  const { backend } = open1;
  const { take, give } = backend.offloads;
  assertEquals(take & 0x0f, 0x0f);
  assertEquals(give & 0x0f, 0x0f);
  assertEquals(backend.setOffloads(give), 0);
  assertEquals(backend.setOffloads(0), 0);
  assertEquals(backend.setOffloads(0x0800), -Errno.EINVAL);
  // No segmentation without checksums.
  assertEquals(backend.setOffloads(0x02), -Errno.EINVAL);
});

tapTest("has the kernel complete a checksum", (host, namespace) => {
  using open1 = closing(open(host));
  const { backend } = open1;
  namespace.setAddress("obtap0", "192.0.2.1");
  const mac = hostMac(host, backend);
  const data = Uint8Array.from({ length: 64 }, (_, i) => i);
  const request = ethernet(mac, 0x0800, ping("192.0.2.2", "192.0.2.1", data));
  const at = 14 + 20;
  // Without the sum nobody would answer.
  request.fill(0, at + 2, at + 4);
  send(host, backend, 0, request);
  assertEquals(drain(host, backend, 0).filter(isEchoReply).length, 0);
  const header = new Uint8Array(HEADER_BYTES);
  header.set([1, 0, 0, 0, 0, 0, at, 0, 2, 0]);
  assert(send(host, backend, 0, request, header) > 0);
  assertEquals(drain(host, backend, 0).filter(isEchoReply).length, 1);
});

tapTest("counts headers that the kernel refuses", (host) => {
  using open1 = closing(open(host));
  const { backend } = open1;
  const frame = new Uint8Array(60);
  const header = new Uint8Array(HEADER_BYTES);
  header.set([1, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0]);
  assert(send(host, backend, 0, frame, header) < 0);
  header.set([1, 0x7f, 0, 0, 5, 5, 34, 0, 16, 0]);
  assert(send(host, backend, 0, frame, header) < 0);
  assertEquals(backend.counters().txDropped, 2);
});

function isEchoReply(bytes: Uint8Array): boolean {
  const packet = parseIp(bytes.slice(HEADER_BYTES));
  return packet?.protocol === 1 && packet.payload[0] === 0;
}

function closing(backend: TapBackend): { backend: TapBackend } & Disposable {
  return { backend, [Symbol.dispose]: () => backend.close() };
}
