import { assert, assertEquals, assertThrows } from "@std/assert";
import { Errno, ErrnoError } from "../../../src/core/errno.ts";
import { openFds } from "../../resources.ts";
import { Controller, FILE, Folder, Host, pattern } from "./rig.ts";

type Options = Partial<typeof FILE>;

/** Opens and expects a refusal. */
function refused(path: string, options: Options, errno: Errno, says: RegExp) {
  using host = new Host();
  const fds = openFds();
  const error = assertThrows(
    () => new Controller(host, { ...FILE, ...options, path }),
    ErrnoError,
  );
  assert(says.test(error.message), error.message);
  assertEquals(error.errno, errno);
  assert(!error.message.includes("\n"));
  assertEquals(openFds(), fds);
}

Deno.test("opening what is no image says what would be one", () => {
  using folder = new Folder();
  const { path } = folder;
  refused(`${path}/none.img`, {}, Errno.ENOENT, /create=10G/);
  const readonly = { readonly: true };
  refused(`${path}/none.img`, readonly, Errno.ENOENT, /none, name one that/);
  refused(path, {}, Errno.EISDIR, /is a directory, name a file/);
  refused(path, { readonly: true }, Errno.EISDIR, /is a directory/);
  refused("/dev/null", {}, Errno.EINVAL, /character device/);
  const file = folder.image("short.img", 511);
  refused(file, {}, Errno.EINVAL, /it has 511 bytes.*truncate -s/);
  refused(
    folder.image("empty.img", 0),
    {},
    Errno.EINVAL,
    /it has 0 bytes/,
  );
  refused(
    folder.image("small.img", 4095),
    { logicalBlockBytes: 4096 },
    Errno.EINVAL,
    /a block has 4096/,
  );
  refused(`${file}/below`, {}, Errno.ENOTDIR, /no directory/);
  refused(
    `${path}/no/disk`,
    { createBytes: 4096 },
    Errno.ENOENT,
    /its folder \/.*\/no does not exist/,
  );
  new Deno.Command("mkfifo", { args: [`${path}/pipe`] }).outputSync();
  refused(`${path}/pipe`, { readonly: true }, Errno.EINVAL, /pipe/);
});

Deno.test("an image of another format is refused, and told how it is served", () => {
  using folder = new Folder();
  for (
    const [format, magic] of [
      ["qcow2", [0x51, 0x46, 0x49, 0xfb]],
      ["vmdk", [0x4b, 0x44, 0x4d, 0x56]],
      ["vhdx", [0x76, 0x68, 0x64, 0x78, 0x66, 0x69, 0x6c, 0x65]],
    ] as const
  ) {
    const path = folder.image(format, 65536);
    using file = Deno.openSync(path, { write: true });
    file.writeSync(new Uint8Array(magic));
    const says = new RegExp(
      `it is a ${format} image.*nbd=.*qemu-nbd -t -f ${format} `,
    );
    refused(path, {}, Errno.EINVAL, says);
    refused(path, { readonly: true }, Errno.EINVAL, says);
  }
  // Only the whole of it counts.
  using host = new Host();
  const path = folder.image("raw", 65536);
  Deno.writeFileSync(path, new TextEncoder().encode("vhdxfil"), {
    append: false,
    create: false,
  });
  Deno.truncateSync(path, 65536);
  using _ = new Controller(host, { ...FILE, path });
});

/** Has the kernel refuse longer files meanwhile, as a file system does that has a limit; some have none. */
function withFilesUpTo(lengthBytes: number, run: () => void): void {
  using library = new DisposableStack();
  const { symbols } = library.adopt(
    Deno.dlopen("libc.so.6", {
      getrlimit: { parameters: ["i32", "buffer"], result: "i32" },
      setrlimit: { parameters: ["i32", "buffer"], result: "i32" },
      signal: { parameters: ["i32", "usize"], result: "usize" },
    }),
    (opened) => opened.close(),
  );
  const RLIMIT_FSIZE = 1;
  const SIGXFSZ = 25;
  const SIG_IGN = 1n;
  const before = new BigUint64Array(2);
  assertEquals(symbols.getrlimit(RLIMIT_FSIZE, before), 0);
  const handler = symbols.signal(SIGXFSZ, SIG_IGN);
  const limit = new BigUint64Array([BigInt(lengthBytes), before[1]!]);
  assertEquals(symbols.setrlimit(RLIMIT_FSIZE, limit), 0);
  try {
    run();
  } finally {
    symbols.setrlimit(RLIMIT_FSIZE, before);
    symbols.signal(SIGXFSZ, handler);
  }
}

Deno.test("create=SIZE makes an image once, and takes back what it cannot size", () => {
  using folder = new Folder();
  using host = new Host();
  const path = `${folder.path}/new.img`;
  {
    const options = { ...FILE, path, createBytes: 1 << 20 };
    using controller = new Controller(host, options);
    assertEquals(controller.backend.info.sizeBytes, 1 << 20);
    assertEquals(controller.write(0, pattern(512, 1)), 0);
    assertEquals(host.infos, [`Made image ${path} of 1M`]);
  }
  {
    const options = { ...FILE, path, createBytes: 2 << 20 };
    using controller = new Controller(host, options);
    assertEquals(controller.backend.info.sizeBytes, 1 << 20);
    assertEquals(controller.read(0, 512), pattern(512, 1));
    assert(/stays as it is/.test(host.infos[1]!));
  }
  const huge = `${folder.path}/huge.img`;
  withFilesUpTo(2 ** 40, () => {
    refused(huge, { createBytes: 2 ** 52 }, Errno.EFBIG, /of 4P.*that size/);
  });
  assertThrows(() => Deno.statSync(huge), Deno.errors.NotFound);
});

Deno.test("an image that cannot be made names its folder", () => {
  using host = new Host();
  // Nobody makes anything here, root neither: not permitted, or read-only.
  const options = { ...FILE, path: "/sys/new.img", createBytes: 4096 };
  const { message } = assertThrows(() => new Controller(host, options));
  assert(/made in its folder \/sys: .*, (see|choose)/.test(message), message);
});

Deno.test("an image with part of a block at its end is served without that, and said to be", () => {
  using folder = new Folder();
  using host = new Host();
  const path = folder.image("disk.img", 65536 + 700);
  using controller = new Controller(host, { ...FILE, path });
  assertEquals(controller.backend.info.sizeBytes, 65536 + 512);
  assertEquals(host.warnings, [
    `${path} has 66236 bytes, no multiple of the block of 512: the guest does not see the last 188`,
  ]);
});

Deno.test("an image has one writer or many readers in this process", () => {
  using folder = new Folder();
  using host = new Host();
  const path = folder.image("disk.img", 4096);
  {
    using _writer = new Controller(host, { ...FILE, path });
    refused(path, {}, Errno.EBUSY, /uses it, stop that one.*readonly=on/);
    refused(path, { readonly: true }, Errno.EBUSY, /writes to it, stop/);
  }
  using _one = new Controller(host, { ...FILE, path, readonly: true });
  using _two = new Controller(host, { ...FILE, path, readonly: true });
  refused(path, {}, Errno.EBUSY, /somebody else uses it/);
});

Deno.test("an image has one writer among processes", async () => {
  using folder = new Folder();
  using host = new Host();
  const options = { ...FILE, path: folder.image("disk.img", 4096) };
  const fixture = `${import.meta.dirname}/fixtures/hold_image.ts`;
  const child = new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", fixture, JSON.stringify(options)],
    stdin: "piped",
    stdout: "piped",
    stderr: "inherit",
  }).spawn();
  const output = child.stdout.getReader();
  const { value } = await output.read();
  assertEquals(new TextDecoder().decode(value), "open\n");
  refused(options.path, {}, Errno.EBUSY, /somebody else uses it/);
  await child.stdin.close();
  await child.status;
  await output.cancel();
  using controller = new Controller(host, options);
  assertEquals(controller.write(0, pattern(512, 1)), 0);
});

Deno.test("physical-block-size is the option's, or at least the logical block", () => {
  using folder = new Folder();
  using host = new Host();
  const path = folder.image("disk.img", 65536);
  {
    const options = { ...FILE, path, physicalBlockBytes: 512 } as const;
    using controller = new Controller(host, options);
    assertEquals(controller.backend.info.physicalBlockBytes, 512);
    assertEquals(controller.backend.info.logicalBlockBytes, 512);
  }
  const options = { ...FILE, path, logicalBlockBytes: 4096 } as const;
  using controller = new Controller(host, options);
  assertEquals(controller.backend.info.physicalBlockBytes, 4096);
  assertEquals(controller.backend.description, `file ${path}`);
});
