/**
 * The file system that guests run from: busybox, chosen tools with the libraries that they are linked with, kernel
 * modules with their dependencies, and an init that serves commands on the second serial port (see `console.ts`).
 *
 * It is left uncompressed: under TCG the guest takes longer to decompress it than QEMU takes to load it.
 *
 * @module
 */

import { createHash } from "node:crypto";
import { basename, dirname, join } from "node:path";
import { ProvisionError } from "./apt.ts";
import { type CpioEntry, writeCpio } from "./cpio.ts";
import { CONSOLE_JOB, CONSOLE_SERVER } from "./console.ts";
import { linkedLibraries, neededLibraries } from "./elf.ts";
import type { GuestTool, GuestToolFiles, Kit } from "./provision.ts";
import { type Tree, treeCommand } from "./tree.ts";

/** Modules that guests load when nothing else is asked for; those built into the kernel are passed over. */
export const DEFAULT_MODULES: readonly string[] = [
  "virtio_pci",
  "virtio_net",
  "af_packet",
  "8021q",
];

/** Contents of an initramfs. */
export interface InitramfsOptions {
  /** Modules that come along and are loaded at boot, by name; dependencies come by themselves. */
  readonly modules?: readonly string[];
  /** Modules that come along without being loaded. */
  readonly availableModules?: readonly string[];
  /** Tools; without it, all of the kit's. */
  readonly tools?: readonly GuestTool[];
  /** Other files by their path in the guest, executable. */
  readonly files?: Readonly<Record<string, Uint8Array | string>>;
}

/** The kernel parameter that names the modules to load at boot, separated by commas, in place of the built-in list. */
export const MODULES_PARAMETER = "outboard.modules";

const LOADER = "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2";
const GUEST_PATH = "/usr/sbin:/usr/bin:/sbin:/bin";

const INIT = `#!/bin/busybox sh
# Not over what is there already, such as /bin/sh: it says so.
/bin/busybox --install -s /bin 2> /dev/null
export PATH=${GUEST_PATH} HOME=/root TERM=dumb
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
mkdir -p /dev/pts /dev/shm
mount -t devpts pts /dev/pts
mount -t tmpfs shm /dev/shm
ip link set lo up
modules=$(cat /etc/modules)
for word in $(cat /proc/cmdline); do
  case $word in
    ${MODULES_PARAMETER}=*) modules=$(echo "\${word#*=}" | tr , ' ') ;;
  esac
done
for module in $modules; do
  modprobe "$module" || echo "init: cannot load $module" > /dev/kmsg
done
# The server starts anew should a command kill it; the kernel would panic without an init.
while :; do
  setsid /sbin/console_server < /dev/ttyS1 > /dev/ttyS1 2> /dev/kmsg
done
`;

/** Builds an initramfs, or finds it in the cache; returns its path. */
export async function buildInitramfs(
  kit: Kit,
  options: InitramfsOptions = {},
): Promise<string> {
  const tools = options.tools ?? Object.keys(kit.tools) as GuestTool[];
  const modules = options.modules ?? DEFAULT_MODULES;
  const available = options.availableModules ?? [];
  const hash = createHash("sha256");
  const scripts = [INIT, CONSOLE_SERVER, CONSOLE_JOB];
  const trees = tools.map((tool) => requireTool(kit, tool).tree.identity);
  const recipe = [tools, trees, kit.guestTree.identity, modules, available];
  hash.update(JSON.stringify([scripts, recipe]));
  for (const [path, data] of Object.entries(options.files ?? {}).sort()) {
    hash.update(`\0${path}\0${data.length}\0`).update(data);
  }
  const key = hash.digest("hex").slice(0, 16);
  const path = join(kit.cacheDir, "initramfs", `${key}.cpio`);
  if (await touch(path)) return path;

  const entries = await collectEntries(kit, tools, modules, available, options);
  await Deno.mkdir(dirname(path), { recursive: true });
  await removeStale(dirname(path));
  const partial = await Deno.makeTempFile({
    dir: dirname(path),
    prefix: `${key}.`,
  });
  await Deno.writeFile(partial, writeCpio(entries));
  await Deno.rename(partial, path);
  return path;
}

async function collectEntries(
  kit: Kit,
  tools: readonly GuestTool[],
  modules: readonly string[],
  available: readonly string[],
  options: InitramfsOptions,
): Promise<CpioEntry[]> {
  const entries = new Map<string, CpioEntry>();
  const add = (entry: CpioEntry) => {
    if (!entries.has(entry.path)) entries.set(entry.path, entry);
  };
  for (const dir of ["dev", "proc", "sys", "tmp", "run", "root", "sbin"]) {
    add({ path: dir, type: "directory" });
  }
  const scripts: Record<string, Uint8Array | string> = {
    "/init": INIT,
    "/sbin/console_server": CONSOLE_SERVER,
    "/sbin/console_job": CONSOLE_JOB,
    "/etc/modules": modules.join("\n") + "\n",
    ...options.files,
  };
  for (const [path, data] of Object.entries(scripts)) {
    add(file(path, typeof data === "string" ? encode(data) : data));
  }
  const busybox = requireTool(kit, "busybox");
  add(
    file(
      "/bin/busybox",
      await Deno.readFile(inTree(busybox, "usr/bin/busybox")),
    ),
  );
  // busybox's own shell prefers its own applets to the programs in PATH, such as ip.
  add({ path: "bin/sh", type: "symlink", target: "/usr/bin/dash" });
  // The kernel loads modules by itself through this path.
  add({ path: "sbin/modprobe", type: "symlink", target: "/bin/busybox" });
  for (const tool of new Set<GuestTool>(["dash", ...tools])) {
    if (tool === "busybox") continue;
    for (const entry of await toolEntries(requireTool(kit, tool))) add(entry);
  }
  const wanted = [...modules, ...available];
  for (const entry of await moduleEntries(kit, wanted)) add(entry);
  return [...entries.values()];
}

interface Tool {
  readonly tree: Tree;
  readonly files: GuestToolFiles;
}

function requireTool(kit: Kit, tool: GuestTool): Tool {
  const found = kit.tools[tool];
  if (found === undefined) {
    throw new Error(`Cannot put ${tool} into a guest: the kit lacks it`);
  }
  return found;
}

function inTree({ tree }: Tool, path: string): string {
  return join(tree.root, path);
}

function encode(text: string): Uint8Array {
  return new TextEncoder().encode(text);
}

function file(path: string, data: Uint8Array, mode = 0o755): CpioEntry {
  return { path: path.replace(/^\/+/, ""), type: "file", mode, data };
}

async function toolEntries(tool: Tool): Promise<CpioEntry[]> {
  const entries: CpioEntry[] = [];
  for (const program of tool.files.programs) {
    const path = inTree(tool, program);
    const data = await Deno.readFile(path);
    entries.push(file(program, data));
    const names = neededLibraries(data);
    const { found, missing } = await linkedLibraries(tool.tree.root, names);
    if (missing.length > 0) {
      throw new ProvisionError(
        `Cannot find the libraries of ${program}: ${missing.join(", ")}`,
      );
    }
    for (const [name, library] of found) {
      // Debian's loader looks here without a configuration.
      const at = `lib/x86_64-linux-gnu/${name}`;
      entries.push(file(at, await Deno.readFile(library)));
    }
  }
  for (const path of tool.files.files ?? []) {
    entries.push(file(path, await Deno.readFile(inTree(tool, path)), 0o644));
  }
  entries.push(
    file(
      "lib64/ld-linux-x86-64.so.2",
      await Deno.readFile(inTree(tool, LOADER)),
    ),
  );
  return entries;
}

/** The files of modules, unpacked, and an index of just them. */
async function moduleEntries(
  kit: Kit,
  names: readonly string[],
): Promise<CpioEntry[]> {
  const { modulesDir, release } = kit.kernel;
  const index = await readModuleIndex(modulesDir);
  const order = moduleClosure(index, names);
  const target = `lib/modules/${release}`;
  const entries: CpioEntry[] = [];
  const lines: string[] = [];
  for (const path of order) {
    const data = await unpackModule(kit, join(modulesDir, path));
    const dependencies = index.dependencies.get(path) ?? [];
    entries.push(file(join(target, unpackedName(path)), data, 0o644));
    lines.push(
      `${unpackedName(path)}: ${dependencies.map(unpackedName).join(" ")}`,
    );
  }
  const text = (content: string) => encode(`${content}\n`);
  entries.push(
    file(join(target, "modules.dep"), text(lines.join("\n")), 0o644),
  );
  // modprobe says nothing about a module that is built in, as long as it is told so.
  for (const name of ["modules.builtin", "modules.alias"]) {
    const data = await Deno.readTextFile(join(modulesDir, name));
    const loaded = new Set(order.map(moduleName));
    const kept = name === "modules.alias"
      ? data.split("\n").filter((line) =>
        loaded.has(line.split(" ").at(-1) ?? "")
      )
      : [data.trimEnd()];
    entries.push(file(join(target, name), text(kept.join("\n")), 0o644));
  }
  return entries;
}

interface ModuleIndex {
  /** Paths by module name. */
  readonly paths: ReadonlyMap<string, string>;
  readonly dependencies: ReadonlyMap<string, readonly string[]>;
  readonly builtin: ReadonlySet<string>;
}

function moduleName(path: string): string {
  return basename(path).replace(/\.ko(\.\w+)?$/, "").replaceAll("-", "_");
}

function unpackedName(path: string): string {
  return path.replace(/\.ko\.\w+$/, ".ko");
}

async function readModuleIndex(modulesDir: string): Promise<ModuleIndex> {
  const paths = new Map<string, string>();
  const dependencies = new Map<string, readonly string[]>();
  const text = await Deno.readTextFile(join(modulesDir, "modules.dep"));
  for (const line of text.split("\n")) {
    const [path, rest] = line.split(":");
    if (!path || rest === undefined) continue;
    paths.set(moduleName(path), path);
    dependencies.set(path, rest.split(" ").filter((word) => word !== ""));
  }
  const builtin = await Deno.readTextFile(join(modulesDir, "modules.builtin"));
  return {
    paths,
    dependencies,
    builtin: new Set(builtin.split("\n").map(moduleName)),
  };
}

function moduleClosure(index: ModuleIndex, names: readonly string[]): string[] {
  const order = new Set<string>();
  for (const name of names) {
    const path = index.paths.get(name.replaceAll("-", "_"));
    if (path === undefined) {
      if (index.builtin.has(name.replaceAll("-", "_"))) continue;
      throw new Error(`Cannot put ${name} into a guest: no such module`);
    }
    // depmod writes the whole closure of a module into its line.
    for (const dependency of index.dependencies.get(path) ?? []) {
      order.add(dependency);
    }
    order.add(path);
  }
  return [...order];
}

async function unpackModule(kit: Kit, path: string): Promise<Uint8Array> {
  if (path.endsWith(".ko")) return await Deno.readFile(path);
  if (!path.endsWith(".ko.xz")) {
    throw new ProvisionError(`Cannot unpack ${path}: unknown compression`);
  }
  const xz = treeCommand(kit.guestTree.root, "usr/bin/xz");
  const output = await new Deno.Command(xz.command, {
    args: [...xz.args, "-dc", path],
    stdin: "null",
    stderr: "piped",
  }).output();
  if (!output.success) {
    const reason = new TextDecoder().decode(output.stderr);
    throw new ProvisionError(`Cannot unpack ${path}: ${reason}`);
  }
  return output.stdout;
}

/** Marks a file as used now; false when it is not there. */
async function touch(path: string): Promise<boolean> {
  try {
    await Deno.utime(path, new Date(), new Date());
    return true;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  }
}

/** Removes what no test has used for a week: every change of a recipe leaves an archive behind. */
async function removeStale(dir: string): Promise<void> {
  const oldest = Date.now() - 7 * 24 * 3600 * 1000;
  for await (const entry of Deno.readDir(dir)) {
    const path = join(dir, entry.name);
    try {
      const { mtime } = await Deno.stat(path);
      if (mtime !== null && mtime.getTime() < oldest) await Deno.remove(path);
    } catch (error) {
      // Another process has the same idea.
      if (!(error instanceof Deno.errors.NotFound)) throw error;
    }
  }
}
