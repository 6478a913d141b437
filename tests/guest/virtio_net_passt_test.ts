import { assert, assertEquals, assertMatch } from "@std/assert";
import { Guest, vfioUserDevice } from "./guest.ts";
import { guestTests } from "./harness.ts";
import { freeTcpPort } from "../ports.ts";
import {
  assertBound,
  assertEcho,
  dhcp,
  DHCP_FILES,
  guestSends,
  TRANSFER_BYTES,
} from "./net_checks.ts";
import { type HostPasst, hostPasst } from "./passt.ts";
import { Serving } from "./serving.ts";
import { sha256, TcpSink, testPattern } from "./tcp_peer.ts";

/** passt takes address and routes over from the interface with the default route. */
function defaultRoute(): object {
  const routes = Deno.readTextFileSync("/proc/net/route").split("\n");
  return routes.some((line) => line.split("\t")[1] === "00000000")
    ? {}
    : { skip: "this host has no default route" };
}

const passt = await hostPasst();
const passtTest = await guestTests({ hosts: [passt, defaultRoute()] });

passtTest("virtio-net through passt", async ({ kit, t }) => {
  const port = freeTcpPort();
  await using serving = await Serving.start({
    devices: [
      `virtio-net,net=passt,passt=${
        (passt as HostPasst).program
      },tcp-ports=127.0.0.1/${port}:7`,
    ],
  });
  await using guest = await Guest.boot({
    kit,
    devices: [vfioUserDevice(serving.sockets[0]!)],
    files: DHCP_FILES,
  });
  let gateway = "";

  await t.step("gets the host's own address by DHCP", async () => {
    await assertBound(guest);
    const address = await dhcp(guest);
    const own = Deno.networkInterfaces().map((of) => of.address);
    assert(own.includes(address), `${address} is none of ${own}`);
    const route = await guest.output("ip route show default");
    gateway = /via (\S+)/.exec(route)![1]!;
  });

  // Behind the gateway's address passt has the host itself.
  await t.step("sends 64 MiB to the host unchanged", async () => {
    using sink = new TcpSink("127.0.0.1");
    const sent = await guestSends(guest, gateway, sink.port);
    assertEquals(await sink.received, {
      lengthBytes: TRANSFER_BYTES,
      sha256: sent,
    });
  });

  await t.step("downloads 32 MiB from the host unchanged", async () => {
    // Not with nc < /dev/null: older passt crawls once the guest has closed its side of a connection.
    const bytes = testPattern(32 * 1024 * 1024);
    await using server = Deno.serve(
      { hostname: "127.0.0.1", port: 0, onListen() {} },
      () => new Response(bytes),
    );
    const received = await guest.output(
      `wget -q -O - http://${gateway}:${server.addr.port}/ | sha256sum`,
      { timeoutMs: 600_000 },
    );
    assertEquals(received.split(" ")[0], await sha256(bytes));
  });

  await t.step("serves a port of the host", async () => {
    await guest.output(
      "(nc -ll -p 7 -e cat > /dev/null 2>&1 &); until netstat -ltn | grep -q :7; do :; done",
    );
    using conn = await Deno.connect({ hostname: "127.0.0.1", port });
    await assertEcho(conn);
  });

  await t.step("goes on when passt was killed", async () => {
    const before = await serving.counters("virtio-net0");
    Deno.kill(before["backend.pid"]!, "SIGKILL");
    await serving.waitForLog(/passt has ended \(signal 9\)/);
    await guest.output(
      `until udhcpc -i eth0 -n -q -f -t 2 -T 1 -s /bin/udhcpc.script; do :; done 2>&1`,
    );
    const after = await serving.counters("virtio-net0");
    assertEquals(after["backend.starts"], 2);
    assertMatch(
      await guest.output(
        `ping -c 1 -W 5 ${gateway} || arping -c 1 -I eth0 ${gateway}`,
      ),
      /1 packets received|1 response|Received 1/,
    );
  });
});
