/**
 * Provisioning of what a guest test needs, without root and without a hand: a QEMU with `vfio-user-pci`, a kernel
 * with its modules, and programs for the guest, all from Debian packages in a cache folder of the user's.
 *
 * Each group of packages becomes a tree of its own (see `tree.ts`).
 *
 * @module
 */

import { join } from "node:path";
import * as zlib from "node:zlib";
import {
  type AptSource,
  debianMirrorSources,
  hostAptSources,
  hostRelease,
  isSkip,
  PrivateApt,
  progress,
  ProvisionError,
  runProgram,
  type Skip,
} from "./apt.ts";
import {
  cacheDirectory,
  cachedTree,
  type CommandPrefix,
  skipOnFailure,
  type Tree,
  treeCommand,
} from "./tree.ts";

export { isSkip, type Skip } from "./apt.ts";
export { type HostLibslirp, hostLibslirp } from "./libslirp.ts";
export {
  cacheDirectory,
  type CommandPrefix,
  type Tree,
  treeCommand,
} from "./tree.ts";

const GUEST_SUITE = "trixie";
const BACKPORTS_SUITE = "trixie-backports";

/** A set of packages that is fetched and unpacked together. */
interface Group {
  readonly packages: readonly string[];
  /** The suite preferred for the packages and their dependencies, where it is not the release itself. */
  readonly targetRelease?: string;
  /** Guest programs by the name of their tool: paths inside the tree. */
  readonly tools?: Readonly<Record<string, GuestToolFiles>>;
}

/** Files of a tool, as paths inside a tree. */
export interface GuestToolFiles {
  /** Programs; the shared libraries that they are linked with come along by themselves. */
  readonly programs: readonly string[];
  /** Other files that the programs read. */
  readonly files?: readonly string[];
}

/** All groups of packages. A tool for the guest is one line here. */
const GROUPS = {
  /** The client under test. */
  qemu: { packages: ["qemu-system-x86"], targetRelease: BACKPORTS_SUITE },
  /** Packages of every guest. `kmod` and `xz-utils` are for preparing the modules on the host. */
  guest: {
    packages: [
      "linux-image-cloud-amd64",
      "kmod",
      "xz-utils",
      "busybox-static",
      "dash",
      "ethtool",
      "iproute2",
      "pciutils",
    ],
    tools: {
      busybox: { programs: ["usr/bin/busybox"] },
      dash: { programs: ["usr/bin/dash"] },
      ethtool: { programs: ["usr/sbin/ethtool"] },
      ip: { programs: ["usr/bin/ip", "usr/sbin/tc", "usr/sbin/bridge"] },
      lspci: {
        programs: ["usr/bin/lspci", "usr/bin/setpci"],
        files: ["usr/share/misc/pci.ids"],
      },
    },
  },
  iperf3: {
    packages: ["iperf3"],
    tools: {
      iperf3: {
        programs: ["usr/bin/iperf3"],
        // Loaded when a thread is cancelled, as each of iperf3's is at its end.
        files: ["usr/lib/x86_64-linux-gnu/libgcc_s.so.1"],
      },
    },
  },
  ping: {
    packages: ["iputils-ping"],
    tools: { ping: { programs: ["usr/bin/ping"] } },
  },
  kexec: {
    packages: ["kexec-tools"],
    tools: { kexec: { programs: ["usr/sbin/kexec"] } },
  },
  fio: { packages: ["fio"], tools: { fio: { programs: ["usr/bin/fio"] } } },
  nvme: {
    packages: ["nvme-cli"],
    tools: { nvme: { programs: ["usr/sbin/nvme"] } },
  },
  images: {
    packages: ["qemu-utils"],
    tools: {
      images: { programs: ["usr/bin/qemu-img", "usr/bin/qemu-io"] },
    },
  },
  filesystem: {
    packages: ["e2fsprogs", "fdisk"],
    tools: {
      filesystem: {
        programs: ["usr/sbin/mke2fs", "usr/sbin/e2fsck", "usr/sbin/sfdisk"],
        files: ["etc/mke2fs.conf"],
      },
    },
  },
} as const satisfies Record<string, Group>;

type GroupName = keyof typeof GROUPS;

/** Tools that every kit has. */
export type BaseTool = keyof typeof GROUPS.guest.tools;

/** Tools that a test asks for when it needs them; each is a download of its own. */
export type ExtraTool = Exclude<GroupName, "qemu" | "guest">;

/** All of those. */
export const EXTRA_TOOLS: readonly ExtraTool[] = Object.keys(GROUPS)
  .filter((name) => name !== "qemu" && name !== "guest") as ExtraTool[];

/** Any program for the guest. */
export type GuestTool = BaseTool | ExtraTool;

/** Packages that others depend on, and that nothing we run uses. */
const ASSUME_INSTALLED = [
  "adduser",
  "base-passwd",
  "debconf",
  "debianutils",
  "dmsetup",
  "init-system-helpers",
  "initramfs-tools",
  "libcap2-bin",
  "linux-base",
  "login.defs",
  "openssl-provider-legacy",
  "passwd",
  "python3",
  "systemd",
  "uuid-runtime",
];

/** Everything that a guest boots from. */
export interface Kit {
  readonly cacheDir: string;
  readonly qemu: CommandPrefix;
  readonly kernel: {
    /** Uncompressed, to be entered directly: a TCG guest takes 2 s to decompress its own. */
    readonly image: string;
    /** As it was packaged, a bzImage. */
    readonly packedImage: string;
    readonly release: string;
    /** The folder with `modules.dep`. */
    readonly modulesDir: string;
  };
  /** The tree that has each tool. */
  readonly tools: Readonly<
    Partial<Record<GuestTool, { tree: Tree; files: GuestToolFiles }>>
  >;
  /** The tree of the kernel and of the host-side helpers. */
  readonly guestTree: Tree;
}

const kits = new Map<string, Promise<Kit | Skip>>();

/** Provides a kit with the tools named, from the cache or by fetching; or the reason why there can be none. */
export function provision(
  options: { readonly tools?: readonly ExtraTool[] } = {},
): Promise<Kit | Skip> {
  const extra = [...new Set(options.tools ?? [])].sort();
  const key = extra.join();
  let kit = kits.get(key);
  if (kit === undefined) {
    kit = skipOnFailure(() => makeKit(extra));
    kits.set(key, kit);
  }
  return kit;
}

async function makeKit(extra: readonly ExtraTool[]): Promise<Kit> {
  if (Deno.build.os !== "linux" || Deno.build.arch !== "x86_64") {
    throw new ProvisionError("Cannot run guests: the host is not x86-64 Linux");
  }
  if (!(await runProgram("setpriv", ["--version"])).success) {
    throw new ProvisionError(
      "Cannot run guests: setpriv (of util-linux) is not there",
    );
  }
  const cacheDir = cacheDirectory();
  const qemu = await provideQemu(cacheDir);
  const guestTree = await provideTree(cacheDir, "guest", prepareKernel);
  const tools: Partial<Record<string, { tree: Tree; files: GuestToolFiles }>> =
    {};
  for (const name of ["guest", ...extra] as const) {
    const tree = name === "guest"
      ? guestTree
      : await provideTree(cacheDir, name);
    for (const [tool, files] of Object.entries(GROUPS[name].tools)) {
      tools[tool] = { tree, files };
    }
  }
  const modulesRoot = join(guestTree.root, "usr/lib/modules");
  const release = await onlyEntry(modulesRoot);
  return {
    cacheDir,
    qemu,
    guestTree,
    tools,
    kernel: {
      image: join(guestTree.root, "boot/vmlinux"),
      packedImage: join(guestTree.root, `boot/vmlinuz-${release}`),
      release,
      modulesDir: join(modulesRoot, release),
    },
  };
}

async function provideQemu(cacheDir: string): Promise<CommandPrefix> {
  const own = Deno.env.get("OUTBOARD_QEMU");
  const system: CommandPrefix = {
    command: own ?? "qemu-system-x86_64",
    args: [],
    env: {},
  };
  if (await knowsVfioUser(system)) return system;
  if (own !== undefined) {
    throw new ProvisionError(
      `Cannot use OUTBOARD_QEMU: ${own} lists no vfio-user-pci device`,
    );
  }
  const { root } = await provideTree(cacheDir, "qemu");
  const prefix = treeCommand(root, "usr/bin/qemu-system-x86_64");
  const qemu: CommandPrefix = {
    ...prefix,
    args: [
      ...prefix.args,
      ...["-L", join(root, "usr/share/qemu")],
      ...["-L", join(root, "usr/share/seabios")],
    ],
    // Started through a loader, QEMU cannot tell where it is installed.
    env: {
      QEMU_MODULE_DIR: join(root, "usr/lib/x86_64-linux-gnu/qemu"),
    },
  };
  if (!await knowsVfioUser(qemu)) {
    throw new ProvisionError(
      "Cannot use the QEMU of the packages: it lists no vfio-user-pci device",
    );
  }
  return qemu;
}

async function knowsVfioUser(qemu: CommandPrefix): Promise<boolean> {
  const args = [...qemu.args, "-device", "help"];
  const ran = await runProgram(qemu.command, args, qemu.env);
  return ran.stdout.includes('"vfio-user-pci"');
}

/** Mark of what {@linkcode prepareKernel} leaves: a cache of another version's has something else. */
const PREPARED = "vmlinux beside vmlinuz, and modules.dep";

/** Makes a kernel that boots fast out of the packaged one, and the index of its modules. */
async function prepareKernel(root: string): Promise<void> {
  progress("preparing the kernel");
  const release = await onlyEntry(join(root, "usr/lib/modules"));
  const packed = await Deno.readFile(join(root, `boot/vmlinuz-${release}`));
  await Deno.writeFile(join(root, "boot/vmlinux"), unpackKernel(packed));
  const depmod = treeCommand(root, "usr/bin/kmod");
  // kmod goes by the name that it is called with.
  const loader = depmod.args.slice(0, -1);
  const ran = await runProgram(depmod.command, [
    ...loader,
    ...["--argv0", "depmod"],
    ...depmod.args.slice(-1),
    ...["-b", root, "-m", "/usr/lib/modules", release],
  ]);
  if (!ran.success) {
    throw new ProvisionError(`Cannot index the modules: ${ran.stderr}`);
  }
}

/** Takes the ELF kernel out of a bzImage, by the fields of Documentation/arch/x86/boot.rst. */
function unpackKernel(image: Uint8Array<ArrayBuffer>): Uint8Array {
  const view = new DataView(image.buffer, image.byteOffset, image.byteLength);
  const setupSectors = view.getUint8(0x1f1);
  const payload = (setupSectors + 1) * 512 + view.getUint32(0x248, true);
  // The build appends the uncompressed size as 4 bytes.
  const length = view.getUint32(0x24c, true) - 4;
  const packed = image.subarray(payload, payload + length);
  if (new DataView(packed.buffer, payload).getUint32(0) !== 0x28b52ffd) {
    throw new ProvisionError("Cannot unpack the kernel: it is not zstd");
  }
  return zlib.zstdDecompressSync(packed);
}

async function onlyEntry(dir: string): Promise<string> {
  for await (const entry of Deno.readDir(dir)) return entry.name;
  throw new ProvisionError(`Cannot use ${dir}: it is empty`);
}

/** Provides the tree of a group, by making it where the cache has none. */
async function provideTree(
  cacheDir: string,
  name: GroupName,
  prepare?: (root: string) => Promise<void>,
): Promise<Tree> {
  const group: Group = GROUPS[name];
  const { packages, targetRelease } = group;
  const suites = [GUEST_SUITE, BACKPORTS_SUITE];
  const recipe = {
    ...{ packages, targetRelease, suites, ASSUME_INSTALLED },
    ...(prepare === undefined ? {} : { PREPARED }),
  };
  return await cachedTree(cacheDir, name, recipe, async (root) => {
    const { codename, id } = await hostRelease();
    const mirrors = debianMirrorSources(
      await hostAptSources(),
      codename,
      suites,
    );
    if (id !== "debian" || mirrors.length === 0) {
      throw new ProvisionError(
        "Cannot fetch packages for the guest: this host has no apt sources of Debian",
      );
    }
    const names = await firstThatWorks(mirrors, (source) =>
      new PrivateApt({
        cacheDir,
        sources: [source],
        architecture: "amd64",
        assumeInstalled: ASSUME_INSTALLED,
      }).unpack(packages, root, targetRelease));
    await prepare?.(root);
    return names;
  });
}

async function firstThatWorks<T>(
  sources: readonly AptSource[],
  use: (source: AptSource) => Promise<T>,
): Promise<T> {
  let failure: unknown;
  for (const source of sources) {
    try {
      return await use(source);
    } catch (error) {
      if (!(error instanceof ProvisionError)) throw error;
      failure ??= error;
    }
  }
  throw failure;
}

/** Narrows a provisioning result to a kit, or throws the reason. */
export function kitOrThrow(result: Kit | Skip): Kit {
  if (isSkip(result)) throw new ProvisionError(result.skip);
  return result;
}
