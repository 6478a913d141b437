/**
 * A virtual machine under test: QEMU, with a Linux guest whose shell runs the test's commands.
 *
 * @module
 */

import { join } from "node:path";
import { type CommandResult, Console, within } from "./console.ts";
import {
  buildInitramfs,
  type InitramfsOptions,
  MODULES_PARAMETER,
} from "./initramfs.ts";
import type { Kit } from "./provision.ts";
import { Qmp, type QmpEvent } from "./qmp.ts";
import { tcgArguments } from "./tcg.ts";
import { TextSink } from "./text_sink.ts";

/** Settings of a guest. */
export interface GuestOptions extends InitramfsOptions {
  readonly kit: Kit;
  /** The argument of one `-device` each; see {@linkcode vfioUserDevice}. */
  readonly devices?: readonly string[];
  readonly machine?: "q35" | "pc";
  readonly memoryMiB?: number;
  /**
   * True if the kernel boots as it was packaged. It takes 2 s more; but one that QEMU has unpacked is written to memory anew
   * at every reset of the machine, also that of waking up from suspend to RAM, where the kernel is already.
   */
  readonly packedKernel?: boolean;
  /** True if the guest's memory can be shared with a device process; without it, QEMU sends DMA as messages. */
  readonly sharedMemory?: boolean;
  readonly cpus?: number;
  /** In place of loading the `modules` at boot, which come along all the same; `[]` loads none. */
  readonly loadModules?: readonly string[];
  /** More words for the kernel's command line. */
  readonly kernelArgs?: readonly string[];
  /** More arguments for QEMU. */
  readonly qemuArgs?: readonly string[];
  readonly bootTimeoutMs?: number;
}

/** The `-device` argument of a device behind a vfio-user socket; other properties of the device may be added. */
export function vfioUserDevice(
  socketPath: string,
  properties: Readonly<Record<string, unknown>> = {},
): string {
  return JSON.stringify({
    driver: "vfio-user-pci",
    socket: { type: "unix", path: socketPath },
    ...properties,
  });
}

/** Boots under TCG take seconds; on a busy machine with few cores, many. */
const BOOT_TIMEOUT_MS = 120_000;
const COMMAND_TIMEOUT_MS = 60_000;
const QEMU_END_GRACE_MS = 60_000;
const LOG_TAIL_LINES = 40;

/**
 * A running guest.
 *
 * Commands run one after another, each in a new shell in `/root`. Disposing of the guest kills QEMU and waits for its end.
 * Should this process die without that, the kernel kills QEMU (see {@linkcode Guest.boot}); nothing of a guest is on
 * disk once it has started.
 */
export class Guest {
  readonly #process: Deno.ChildProcess;
  readonly #exited: Promise<Deno.CommandStatus>;
  readonly #stderr: TextSink;
  readonly #log: TextSink;
  #status: Deno.CommandStatus | undefined;
  #console: Console | undefined;
  #qmp: Qmp | undefined;

  private constructor(process: Deno.ChildProcess) {
    this.#process = process;
    this.#stderr = new TextSink();
    this.#log = new TextSink();
    const stderrEnd = this.#stderr.drain(process.stderr);
    this.#exited = process.status.then(async (status) => {
      await stderrEnd;
      this.#status = status;
      this.#console?.fail(new Error(this.#describe()));
      this.#log.fail(new Error(this.#describe()));
      return status;
    });
  }

  /** Starts QEMU and waits until the guest's shell is there. */
  static async boot(options: GuestOptions): Promise<Guest> {
    const initramfs = await buildInitramfs(options.kit, options);
    const dir = await Deno.makeTempDir({ prefix: "outboard-guest-" });
    let guest: Guest | undefined;
    try {
      // QEMU connects to us rather than we to it: no byte is lost, and there is nothing to poll for.
      using listeners = new Listeners(dir);
      guest = new Guest(spawnQemu(options, initramfs, listeners));
      await guest.#connect(listeners);
      await guest.#waitUntilReady(
        guest.#requireConsole().nextReady(),
        options.bootTimeoutMs ?? BOOT_TIMEOUT_MS,
      );
      return guest;
    } catch (error) {
      await guest?.[Symbol.asyncDispose]();
      throw error;
    } finally {
      await Deno.remove(dir, { recursive: true });
    }
  }

  /** QEMU's process id. */
  get pid(): number {
    return this.#process.pid;
  }

  /** Output of QEMU on stderr. */
  get stderr(): string {
    return this.#stderr.text;
  }

  /** Output of the guest's kernel on its console, all boots together. */
  get log(): string {
    return this.#log.text;
  }

  /** Resolves when QEMU has ended. */
  get exited(): Promise<Deno.CommandStatus> {
    return this.#exited;
  }

  /** Runs a shell command in the guest and gives its output and status. */
  run(
    command: string,
    options: { readonly timeoutMs?: number } = {},
  ): Promise<CommandResult> {
    const timeoutMs = options.timeoutMs ?? COMMAND_TIMEOUT_MS;
    const result = this.#requireConsole().run(command, timeoutMs);
    // A test that kills the guest under a command asks for the command's end only afterwards.
    result.catch(() => {});
    return result;
  }

  /** Runs a shell command that must succeed, and gives its output. */
  async output(
    command: string,
    options: { readonly timeoutMs?: number } = {},
  ): Promise<string> {
    const { output, status } = await this.run(command, options);
    if (status === 0) return output;
    throw new Error(
      `a command failed in the guest with status ${status}\n` +
        `command: ${command}\noutput: ${output}\n${this.#describe()}`,
    );
  }

  /** Starts a shell command of which no end is expected, as the guest that it runs in goes before. */
  async start(command: string): Promise<void> {
    await this.#requireConsole().start(command);
  }

  /**
   * Reboots from inside the guest, without a shutdown unless the command has one, and waits for the shell of the kernel that
   * comes up; QEMU stays.
   */
  async reboot(
    options: { readonly command?: string; readonly timeoutMs?: number } = {},
  ): Promise<void> {
    const ready = this.#requireConsole().nextReady();
    ready.catch(() => {});
    await this.start(options.command ?? "reboot -f");
    await this.#waitUntilReady(ready, options.timeoutMs ?? BOOT_TIMEOUT_MS);
  }

  /** Waits until the kernel's log, from `from` on, matches; gives the match. */
  async waitForLog(
    pattern: RegExp,
    options: { readonly timeoutMs?: number; readonly from?: number } = {},
  ): Promise<RegExpExecArray> {
    const timeoutMs = options.timeoutMs ?? COMMAND_TIMEOUT_MS;
    const match = await within(
      this.#log.match(pattern, options.from ?? 0),
      timeoutMs,
    );
    if (match !== undefined) return match;
    throw new Error(
      `Cannot find ${pattern} in the kernel's log: not there after ${timeoutMs} ms\n${this.#describe()}`,
    );
  }

  /** Executes a command of QEMU's monitor. */
  async qmp(
    command: string,
    args: Readonly<Record<string, unknown>> = {},
  ): Promise<unknown> {
    if (this.#qmp === undefined) throw new Error("the monitor is not there");
    return await this.#qmp.execute(command, args);
  }

  /** Resolves with QEMU's next event of that name; call it before what causes the event. */
  nextQmpEvent(
    name: string,
    matches?: (event: QmpEvent) => boolean,
  ): Promise<QmpEvent> {
    if (this.#qmp === undefined) throw new Error("the monitor is not there");
    return this.#qmp.nextEvent(name, matches);
  }

  /** Sends QEMU a signal, such as SIGSTOP or SIGCONT; nothing when it has ended. */
  signal(signal: Deno.Signal): void {
    if (this.#status !== undefined) return;
    try {
      this.#process.kill(signal);
    } catch (error) {
      // It may have ended without us knowing yet.
      if (!(error instanceof TypeError)) throw error;
    }
  }

  /** Sends QEMU a signal that ends it, and waits for its end. */
  async kill(signal: Deno.Signal = "SIGKILL"): Promise<Deno.CommandStatus> {
    this.signal(signal);
    return await this.#exited;
  }

  /** Kills QEMU and leaves nothing behind. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.kill();
    await this.#console?.close();
    await this.#qmp?.close();
    await this.#log.drained;
  }

  async #connect(listeners: Listeners): Promise<void> {
    const connections = Promise.all([
      listeners.log.accept(),
      listeners.console.accept(),
      listeners.qmp.accept(),
    ]);
    connections.catch(() => {});
    const accepted = await Promise.race([connections, this.#exited]);
    if (!Array.isArray(accepted)) throw new Error(this.#describe());
    const [log, console, qmp] = accepted;
    void this.#log.drain(log.readable);
    this.#console = new Console(console, () => this.#describe());
    this.#failOnPanic(this.#console);
    this.#qmp = new Qmp(qmp);
    try {
      await this.#qmp.negotiate();
    } catch (error) {
      // QEMU opens its monitor before it looks at its devices: its own words say more than a closed monitor.
      await within(this.#exited, QEMU_END_GRACE_MS);
      throw new Error(this.#describe(), { cause: error });
    }
  }

  #failOnPanic(console: Console): void {
    this.#log.match(/Kernel panic - not syncing.*/, 0).then((match) => {
      console.fail(
        new Error(
          `the guest's kernel is dead: ${match[0]}\n${this.#describe()}`,
        ),
      );
    }, () => {}); // the guest ended in another way
  }

  async #waitUntilReady(ready: Promise<void>, timeoutMs: number) {
    const inTime = await within(ready.then(() => true), timeoutMs);
    if (inTime) return;
    throw new Error(
      `Cannot reach the guest's shell: not there after ${timeoutMs} ms\n${this.#describe()}`,
    );
  }

  #requireConsole(): Console {
    if (this.#console === undefined) throw new Error("the guest is not booted");
    return this.#console;
  }

  /** Describes the guest for error messages. */
  #describe(): string {
    const state = this.#status === undefined
      ? "QEMU is running"
      : `QEMU has ended: ${this.#status.signal ?? `exit ${this.#status.code}`}`;
    const tail = this.log.trimEnd().split("\n").slice(-LOG_TAIL_LINES);
    return `${state}\nstderr: ${this.stderr.trim()}\nkernel log:\n${
      tail.map((line) => `  ${line.trimEnd()}`).join("\n")
    }`;
  }
}

/** The sockets that QEMU connects to when it starts. */
class Listeners implements Disposable {
  readonly log: Deno.UnixListener;
  readonly console: Deno.UnixListener;
  readonly qmp: Deno.UnixListener;
  readonly path: (name: "log" | "console" | "qmp") => string;

  constructor(dir: string) {
    this.path = (name) => join(dir, name);
    const listen = (name: "log" | "console" | "qmp") =>
      Deno.listen({ transport: "unix", path: this.path(name) });
    this.log = listen("log");
    this.console = listen("console");
    this.qmp = listen("qmp");
  }

  [Symbol.dispose](): void {
    this.log.close();
    this.console.close();
    this.qmp.close();
  }
}

function spawnQemu(
  options: GuestOptions,
  initramfs: string,
  listeners: Listeners,
): Deno.ChildProcess {
  const { qemu } = options.kit;
  // The kernel kills QEMU when the thread that started it ends, be it by the end of a test file, a crash or SIGKILL.
  // A wrapper that watches a pipe would do as much, but would have to outlive us, and QEMU's pid would be another.
  return new Deno.Command("setpriv", {
    args: [
      ...["--pdeathsig", "KILL", "--", qemu.command, ...qemu.args],
      ...qemuArguments(options, initramfs, listeners),
    ],
    env: { ...qemu.env },
    stdin: "null",
    stdout: "null",
    stderr: "piped",
  }).spawn();
}

function qemuArguments(
  options: GuestOptions,
  initramfs: string,
  listeners: Listeners,
): string[] {
  const { image, packedImage } = options.kit.kernel;
  const memory = `${options.memoryMiB ?? 256}M`;
  const shared = options.sharedMemory ?? true;
  const machine = options.machine ?? "q35";
  const escaped = (name: "log" | "console" | "qmp") =>
    listeners.path(name).replaceAll(",", ",,");
  const chardev = (id: "log" | "console") => [
    ...["-chardev", `socket,id=${id},path=${escaped(id)}`],
  ];
  const kernelArgs = [
    "console=ttyS0",
    // Nothing here is worth the time that these take under TCG.
    "mitigations=off",
    "nokaslr",
    "nowatchdog",
    // The kernel gives up at boot when a busy host lets no timer tick in time.
    "no_timer_check",
    "cryptomgr.notests",
    ...(options.loadModules === undefined
      ? []
      : [`${MODULES_PARAMETER}=${options.loadModules.join(",")}`]),
    ...(options.kernelArgs ?? []),
  ];
  return [
    ...["-nodefaults", "-no-user-config", "-display", "none"],
    ...[...tcgArguments(options.cpus), "-cpu", "qemu64,+rdrand"],
    ...["-m", memory],
    ...(shared
      ? [
        ...["-object", `memory-backend-memfd,id=ram,size=${memory},share=on`],
        ...["-machine", `${machine},memory-backend=ram`],
      ]
      : ["-machine", machine]),
    ...["-kernel", options.packedKernel ? packedImage : image],
    ...["-initrd", initramfs],
    ...["-append", kernelArgs.join(" ")],
    ...[...chardev("log"), "-serial", "chardev:log"],
    ...[...chardev("console"), "-serial", "chardev:console"],
    ...["-qmp", `unix:${escaped("qmp")}`],
    ...(options.devices ?? []).flatMap((device) => ["-device", device]),
    ...(options.qemuArgs ?? []),
  ];
}
