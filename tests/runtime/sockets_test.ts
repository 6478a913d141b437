import { assert, assertEquals, assertThrows } from "@std/assert";
import { connectUnix, Fd, listenUnix } from "../../src/os/mod.ts";
import { libc } from "../../src/os/symbols.ts";
import { openEndpoint } from "../../src/runtime/sockets.ts";
import { makeSocketFile } from "../../src/os/socket/socket_file.ts";
import { namespaceTests } from "../namespaces.ts";
import { openFds } from "../resources.ts";

function inFolder(name: string, run: (folder: string) => void): void {
  Deno.test(name, () => {
    const folder = Deno.makeTempDirSync();
    const before = openFds();
    try {
      run(folder);
      assertEquals(openFds(), before);
    } finally {
      Deno.removeSync(folder, { recursive: true });
    }
  });
}

function names(folder: string): string[] {
  return [...Deno.readDirSync(folder)].map((entry) => entry.name);
}

inFolder("openEndpoint makes and removes an owner-only socket", (folder) => {
  const path = `${folder}/s`;
  const listening = openEndpoint({ kind: "path", path });
  assertEquals(names(folder), [], "it is there when it listens");
  listening.listen();
  assertEquals(Deno.statSync(path).mode! & 0o777, 0o600);
  connectUnix(path).close();
  listening.close();
  listening.close();
  assertEquals(names(folder), []);
});

inFolder(
  "openEndpoint replaces a stale socket but not a live one",
  (folder) => {
    const path = `${folder}/s`;
    listenUnix(path).close();
    const listening = openEndpoint({ kind: "path", path });
    listening.listen();
    const error = assertThrows(
      () => openEndpoint({ kind: "path", path }),
      Error,
    );
    assert(error.message.includes("another process is serving it"));
    connectUnix(path).close();
    listening.close();
  },
);

inFolder("openEndpoint leaves other files alone", (folder) => {
  const path = `${folder}/file`;
  Deno.writeTextFileSync(path, "precious");
  const error = assertThrows(() => openEndpoint({ kind: "path", path }), Error);
  assert(error.message.includes("is not a socket"));
  assertEquals(Deno.readTextFileSync(path), "precious");
  // A socket that somebody else put in our place is not ours to remove.
  const ours = openEndpoint({ kind: "path", path: `${folder}/s` });
  ours.listen();
  Deno.removeSync(`${folder}/s`);
  using theirs = listenUnix(`${folder}/s`);
  ours.close();
  assertEquals(names(folder).sort(), ["file", "s"]);
  theirs.close();
});

inFolder("openEndpoint names the remedy for a bad folder", (folder) => {
  const error = assertThrows(
    () => openEndpoint({ kind: "path", path: `${folder}/no/s` }),
    Error,
  );
  assert(error.message.includes("folder does not exist"), error.message);
});

namespaceTests({
  url: import.meta.url,
  names: /a read-only file system/,
  namespaces: ["--mount"],
  why: Deno.uid() === 0 ? null : "mount(8) is root's",
  probe: "mount -t tmpfs none /tmp",
})("a socket on a read-only file system is refused with the remedy", () => {
  const folder = Deno.makeTempDirSync();
  const sh = (command: string) =>
    new Deno.Command("sh", { args: ["-c", command] }).outputSync().success;
  try {
    assert(sh(`mount -t tmpfs -o ro none ${folder}`));
    const path = `${folder}/s`;
    const binds = [
      () => openEndpoint({ kind: "path", path }).listen(),
      () => makeSocketFile({ path }, listenUnix),
      () =>
        makeSocketFile(
          { path },
          () => Deno.listen({ transport: "unix", path }),
        ),
    ];
    for (const bind of binds) {
      assertThrows(
        bind,
        Error,
        `Cannot listen on ${path}: its file system is read-only; choose a folder`,
      );
    }
  } finally {
    sh(`umount ${folder}`);
    Deno.removeSync(folder);
  }
});

inFolder("openEndpoint takes an inherited listening socket only", (folder) => {
  using listener = listenUnix(`${folder}/s`);
  const listening = openEndpoint({ kind: "fd", fd: listener.number });
  assertEquals(listening.path, `${folder}/s`);
  listening.close();
  assertEquals(names(folder), ["s"], "its owner removes it");
  using client = connectUnix(`${folder}/s`);
  const notListening = assertThrows(
    () => openEndpoint({ kind: "fd", fd: client.number }),
    Error,
  );
  assert(notListening.message.includes("not a listening"));
  const closed = assertThrows(
    () => openEndpoint({ kind: "fd", fd: 999 }),
    Error,
  );
  assert(closed.message.includes("not open"));
});

inFolder(
  "openEndpoint leaves a socket alone that it cannot tell to be stale",
  (folder) => {
    const path = `${folder}/datagrams`;
    const AF_UNIX = 1;
    const SOCK_DGRAM = 2;
    using live = new Fd(libc.socket(AF_UNIX, SOCK_DGRAM, 0));
    const address = new Uint8Array(110);
    address[0] = AF_UNIX;
    address.set(new TextEncoder().encode(path), 2);
    assertEquals(libc.bind(live.number, address, address.length), 0);
    const error = assertThrows(
      () => openEndpoint({ kind: "path", path }),
      Error,
    );
    assert(error.message.includes("another process is serving it"));
    assertEquals(names(folder), ["datagrams"]);
  },
);

inFolder("a socket is for whom its mode and group say", (folder) => {
  const path = `${folder}/s`;
  const { gid } = Deno.statSync(folder);
  const access = (place: { mode?: number; group?: string }) => {
    using listening = openEndpoint({ kind: "path", path, ...place });
    listening.listen();
    connectUnix(path).close();
    const { mode, gid } = Deno.statSync(path);
    return [mode! & 0o777, gid];
  };
  assertEquals(access({ mode: 0o666 }), [0o666, gid]);
  assertEquals(access({ group: `${gid}` }), [0o660, gid]);
  assertEquals(access({ group: `${gid}`, mode: 0o620 }), [0o620, gid]);
  const name = Deno.readTextFileSync("/etc/group").split("\n")
    .map((line) => line.split(":"))
    .find(([, , number]) => number === `${gid}`)![0]!;
  assertEquals(access({ group: name }), [0o660, gid]);
  for (const group of ["no-such-group", "99999999999"]) {
    assertThrows(() => access({ group }), Error, "there is no such group");
  }
  assertEquals(names(folder), []);
});

inFolder("openEndpoint says that a path is too long", (folder) => {
  const path = `${folder}/${"x".repeat(108 - folder.length)}`;
  const error = assertThrows(() => openEndpoint({ kind: "path", path }), Error);
  assert(error.message.includes("has 109 bytes"), error.message);
  const longest = openEndpoint({ kind: "path", path: path.slice(0, 107) });
  longest.listen();
  longest.close();
  assertEquals(names(folder), []);
});

Deno.test("openEndpoint does not take a listening TCP socket", () => {
  const AF_INET = 2;
  const SOCK_STREAM = 1;
  using listener = new Fd(libc.socket(AF_INET, SOCK_STREAM, 0));
  // Without bind, listen picks a port.
  assertEquals(libc.listen(listener.number, 1), 0);
  const error = assertThrows(
    () => openEndpoint({ kind: "fd", fd: listener.number }),
    Error,
  );
  assert(error.message.includes("not a listening UNIX stream socket"));
});
