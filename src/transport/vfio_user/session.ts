/**
 * One client: its commands and everything it brought, from the first message to the last.
 *
 * @module
 */

import type { Counters } from "./counters.ts";
import { Errno, ErrnoError } from "../../core/errno.ts";
import type { BottomHalf, Loop, Timer } from "../../loop/event_loop.ts";
import type { Log } from "../../core/log.ts";
import type { Fd, ResourceBag, Saved } from "../../os/mod.ts";
import { modelFault } from "../../core/model_fault.ts";
import type { DmaMemory } from "../../memory/dma_memory.ts";
import type { PciFunction } from "../../pci/function.ts";
import type { PciInterrupts } from "../../pci/interrupts.ts";
import type { CommandsState, SessionState } from "./client_state.ts";
import { Connection, type ConnectionHandler, Handled } from "./connection.ts";
import {
  commandName,
  DEVICE_INFO,
  HEADER,
  REGION_ACCESS,
  VFIO_DEVICE_FLAGS_PCI,
  VFIO_DEVICE_FLAGS_RESET,
  VFIO_PCI_NUM_IRQS,
  VFIO_PCI_NUM_REGIONS,
  VFIO_USER_DEVICE_GET_INFO,
  VFIO_USER_DEVICE_GET_IRQ_INFO,
  VFIO_USER_DEVICE_GET_REGION_INFO,
  VFIO_USER_DEVICE_GET_REGION_IO_FDS,
  VFIO_USER_DEVICE_RESET,
  VFIO_USER_DEVICE_SET_IRQS,
  VFIO_USER_DMA_MAP,
  VFIO_USER_DMA_UNMAP,
  VFIO_USER_F_NO_REPLY,
  VFIO_USER_F_TYPE_COMMAND,
  VFIO_USER_F_TYPE_MASK,
  VFIO_USER_F_TYPE_REPLY,
  VFIO_USER_REGION_READ,
  VFIO_USER_REGION_WRITE,
  VFIO_USER_REGION_WRITE_MULTI,
  VFIO_USER_VERSION,
} from "./defs.ts";
import { DmaCommands, unmapUntil } from "./dma.ts";
import { Doorbells } from "./doorbells.ts";
import { FdList } from "./fd_list.ts";
import { Irqs } from "./irqs.ts";
import type { SocketWrites } from "../../pci/socket_writes.ts";
import type { RegionFiles } from "./region_files.ts";
import { Regions } from "./regions.ts";
import { checkArgsz, invalid, type Request, UNFINISHED } from "./request.ts";
import { Settling } from "./settling.ts";
import { type Agreement, negotiate, type ServerLimits } from "./version.ts";

/** Time for which what a client left is unmapped before others on the loop have their turn, in milliseconds. */
const FORGET_MS = 2;

/**
 * Time a command may wait for requests in flight, in milliseconds: QEMU gives up on a reply after 5 s, in which its
 * guest stands still.
 */
const SETTLE_MS = 4000;

/** The smallest buffer for a message: room for JSON, lists of areas, and the padded requests of SPDK. */
const MESSAGE_BYTES_MIN = 65_536;

/** Of a command that is carried out later. */
const NO_FDS = new FdList();

/** Parts that a session works with. */
export interface SessionOptions {
  readonly loop: Loop;
  readonly log: Log;
  /** The connected socket; the session owns it. */
  readonly fd: Fd;
  readonly pci: PciFunction;
  readonly interrupts: PciInterrupts;
  readonly memory: DmaMemory;
  readonly files: RegionFiles;
  readonly limits: ServerLimits;
  /** Time the client may take until a version is agreed, in milliseconds. */
  readonly helloTimeoutMs: number;
  /** Counts what the client sends. */
  readonly writes: SocketWrites;
  readonly counters: Counters;
  /** The client's main memory is not shared. */
  readonly onUnsharedMemory: () => void;
  /** The client has gone; everything it brought is gone too. */
  readonly onClose: (reason: string) => void;
  /** Result of {@linkcode Session.save} of this socket, to go on from there. */
  readonly saved?: Saved<SessionState>;
}

/** Parts that exist once a version is agreed. */
interface Commands {
  readonly agreement: Agreement;
  readonly dma: DmaCommands;
  readonly irqs: Irqs;
  readonly regions: Regions;
  readonly doorbells: Doorbells;
}

/**
 * The conversation with one client.
 *
 * ```text
 *   connected --VERSION--> negotiated --> closed, or handed over to another thread
 * ```
 * Each command is handled and answered before the next is looked at. What a command makes the device do happens in
 * bottom halves, after the answer has left: the client may hold a lock while it waits.
 *
 * A command that ends requests in flight which cannot be ended at will, as those to a file, waits for them, and so do all
 * that come behind it, while others on the loop go on. That is a reset, an unmapping of memory that they use, and a write
 * that does as much. A write to a BAR is answered before; and until the command has begun, reads of registers that come
 * next are answered too, with what the registers hold before it: a driver that polls for the end of a reset finds that it
 * has not come, and the thread of the VMM that reads for it is not held up. After {@linkcode SETTLE_MS} the client is
 * dropped. Its memory stays mapped, and the device is nobody's, until the last of those requests has ended.
 *
 * An error is answered by a header and nothing more, as the protocol text demands and QEMU and SPDK expect. The
 * client of cloud-hypervisor waits for the payload of success even then and hangs; it cannot be told from others
 * in time, and it makes no mistakes in its ordinary run.
 */
export class Session implements ConnectionHandler {
  readonly #options: SessionOptions;
  readonly #connection: Connection;
  readonly #request: Request;
  readonly #counters: Counters;
  #commands: Commands | null = null;
  /** True if the command at hand failed by a fault of ours. */
  #fault = false;
  #warned = false;
  /** Ends a client that agrees on no version: it keeps others from the device. */
  readonly #hello: Timer;
  /** True if a part of the command at hand is done. */
  #underway = false;
  /** The command that waits for requests in flight, or is carried out after that: the whole message. */
  #deferred: DataView<ArrayBuffer> | null = null;
  readonly #settling: Settling;
  /** Goes on with a deferred command of which a part is done. */
  readonly #deferredAgain: BottomHalf;
  /** Goes on with what is to be done after the client has gone. */
  readonly #forget: BottomHalf;
  /** Reason why the client has gone, as long as something is to be done about it. */
  #goneReason: string | null = null;

  /**
   * @throws {Error} When the connection cannot be served; the socket is then still the caller's
   */
  constructor(options: SessionOptions) {
    this.#options = options;
    this.#counters = options.counters;
    const maxMessageBytes = Math.max(
      HEADER.SIZE + REGION_ACCESS.SIZE + options.limits.maxDataXferSize,
      MESSAGE_BYTES_MIN,
    );
    this.#connection = new Connection(
      options.loop,
      options.fd,
      maxMessageBytes,
      this,
      options.saved && {
        state: options.saved.state.connection,
        bag: options.saved.bag,
      },
      options.writes,
    );
    const { incoming, outgoing, fds } = this.#connection;
    this.#request = {
      in: incoming,
      at: 0,
      lengthBytes: 0,
      fds,
      out: outgoing,
      outAt: 0,
      outFds: undefined,
      isTurnOver: () => this.#connection.turnOver,
    };
    this.#settling = new Settling(options.loop, options.pci);
    this.#deferredAgain = options.loop.bottomHalf(() => this.#runDeferred());
    this.#forget = options.loop.bottomHalf(() => this.#forgetClient(false));
    this.#hello = options.loop.timer(() => this.#onSilence());
    if (options.saved !== undefined) this.#load(options.saved);
    if (this.#commands === null) this.#hello.arm(options.helloTimeoutMs);
  }

  #onSilence(): void {
    const seconds = this.#options.helloTimeoutMs / 1000;
    this.close(`it has agreed on no version within ${seconds} s`);
  }

  #load({ state, bag }: Saved<SessionState>): void {
    const { commands, warned, underway } = state;
    this.#warned = warned;
    this.#underway = underway;
    if (commands === null) return;
    try {
      this.#commands = this.#makeCommands(commands.agreement, {
        state: commands,
        bag,
      });
    } catch (error) {
      this.#connection.leave();
      throw error;
    }
    this.#options.interrupts.connect(this.#commands.irqs);
  }

  /** State that a session that goes on with this client must know, but for its memory. The client notices nothing. */
  save(bag: ResourceBag): SessionState {
    const commands = this.#commands;
    return {
      connection: this.#connection.save(bag),
      commands: commands === null ? null : {
        agreement: commands.agreement,
        sharedSeen: commands.dma.sharedSeen,
        progress: commands.regions.progress,
        irqs: commands.irqs.save(bag.at("irqs")),
        doorbells: commands.doorbells.save(bag.at("doorbells")),
      },
      warned: this.#warned,
      underway: this.#underway,
    };
  }

  /** True if a command waits for requests in flight, so that the session cannot be saved. */
  get waiting(): boolean {
    return this.#deferred !== null;
  }

  /** Closes what is open here after {@linkcode save}; the device is not reset and the owner not told. */
  leave(): void {
    // First, so that nobody uses an eventfd that is closed.
    this.#options.interrupts.connect(null);
    this.#hello.close();
    this.#settling.close();
    this.#connection.leave();
    this.#commands?.irqs.close();
    this.#commands?.doorbells.leave();
  }

  /** Ends the session. */
  close(reason: string): void {
    this.#connection.close(reason);
  }

  /** Does what is left to be done after {@linkcode Session.close}, all at once. */
  finish(): void {
    if (this.#goneReason === null) return;
    if (this.#settling.active) this.#resetDevice();
    this.#forgetClient(true);
  }

  onMessage(at: number, sizeBytes: number): Handled {
    const { incoming } = this.#connection;
    const flags = incoming.getUint32(at + HEADER.FLAGS, true);
    const command = incoming.getUint16(at + HEADER.CMD, true);
    const request = this.#request;
    request.in = incoming;
    request.at = at + HEADER.SIZE;
    request.lengthBytes = sizeBytes - HEADER.SIZE;
    request.fds = this.#connection.fds;
    if (this.#deferred !== null && !this.#overtakes(command, request)) {
      return Handled.WAITING;
    }
    if (!this.#underway) this.#counters.messages++;
    if ((flags & VFIO_USER_F_TYPE_MASK) !== VFIO_USER_F_TYPE_COMMAND) {
      this.#dropStray(command);
      return Handled.DONE;
    }
    if (!this.#underway && this.#mustSettle(command, request)) {
      this.#defer(incoming, at, sizeBytes);
      return Handled.DONE;
    }
    return this.#handle(incoming, at) ? Handled.DONE : Handled.UNFINISHED;
  }

  /** Carries out the command of a message, whose payload the request tells. @returns Whether it is done */
  #handle(message: DataView, at: number): boolean {
    const connection = this.#connection;
    const flags = message.getUint32(at + HEADER.FLAGS, true);
    const command = message.getUint16(at + HEADER.CMD, true);
    const request = this.#request;
    request.outAt = connection.outAt + HEADER.SIZE;
    request.outFds = undefined;
    const result = this.#execute(command, request);
    this.#underway = result === UNFINISHED;
    if (this.#underway) return false;
    this.#commands?.regions.end();
    if (result < 0) this.#counters.errors++;
    if ((flags & VFIO_USER_F_NO_REPLY) === 0) {
      if (result < 0) connection.sendError(message, at, -result);
      else this.#reply(message, at, command, result);
    }
    if (this.#fault) connection.close("its command failed in the device");
    return true;
  }

  /** True if a command is handled before the deferred one. */
  #overtakes(command: number, request: Request): boolean {
    return command === VFIO_USER_REGION_READ && !this.#underway &&
      this.#commands!.regions.readsAtOnce(request);
  }

  /** True if a command is to wait for requests in flight. */
  #mustSettle(command: number, request: Request): boolean {
    if (this.#commands === null || request.fds.truncated) return false;
    switch (command) {
      case VFIO_USER_REGION_WRITE:
        return this.#commands.regions.mustSettle(request);
      case VFIO_USER_REGION_WRITE_MULTI:
        return this.#commands.regions.mustSettleMulti(request);
      case VFIO_USER_DMA_UNMAP:
        return this.#commands.dma.mustSettle(request, this.#options.pci);
      case VFIO_USER_DEVICE_RESET:
        return this.#options.pci.unfinished() > 0;
      default:
        return false;
    }
  }

  #defer(incoming: DataView, at: number, sizeBytes: number): void {
    const bytes = new Uint8Array(incoming.buffer, incoming.byteOffset + at);
    const message = new DataView(bytes.slice(0, sizeBytes).buffer);
    this.#deferred = message;
    if (this.#commands!.regions.isBarWrite(message)) {
      this.#answerAhead(message);
    }
    this.#settling.begin(() => this.#runDeferred(), SETTLE_MS, () => {
      this.close(
        `its requests in flight have not ended within ${SETTLE_MS / 1000} s`,
      );
    });
  }

  /** Replies that a write is done, which it will be before anything else is. */
  #answerAhead(message: DataView): void {
    const flags = message.getUint32(HEADER.FLAGS, true);
    if ((flags & VFIO_USER_F_NO_REPLY) !== 0) return;
    const { outgoing, outAt } = this.#connection;
    for (let i = HEADER.SIZE; i < HEADER.SIZE + REGION_ACCESS.SIZE; i++) {
      outgoing.setUint8(outAt + i, message.getUint8(i));
    }
    this.#request.outFds = undefined;
    this.#reply(message, 0, VFIO_USER_REGION_WRITE, REGION_ACCESS.SIZE);
    message.setUint32(HEADER.FLAGS, flags | VFIO_USER_F_NO_REPLY, true);
  }

  #runDeferred(): void {
    const message = this.#deferred;
    const connection = this.#connection;
    if (message === null || connection.closed) return;
    const request = this.#request;
    request.in = message;
    request.at = HEADER.SIZE;
    request.lengthBytes = message.byteLength - HEADER.SIZE;
    request.fds = NO_FDS;
    connection.beginTurn();
    if (!this.#handle(message, 0)) return this.#deferredAgain.schedule();
    this.#deferred = null;
    this.#settling.end();
    connection.resume();
  }

  onClose(reason: string): void {
    const { interrupts, pci } = this.#options;
    this.#hello.close();
    this.#deferred = null;
    this.#deferredAgain.cancel();
    // What fails at one step must not keep the next client from a clean start.
    const isQuiet = this.#attempt(
      "disconnect interrupts",
      () => interrupts.connect(null),
    );
    if (isQuiet) this.#commands?.irqs.close();
    // Eventfds that another thread may be signalling are better lost.
    else this.#commands?.irqs.abandon();
    this.#commands?.doorbells.close();
    this.#goneReason = reason;
    const leave = () => {
      this.#resetDevice();
      this.#forgetClient(false);
    };
    if (pci.unfinished() > 0) this.#settling.begin(leave);
    else leave();
  }

  #resetDevice(): void {
    const { pci } = this.#options;
    this.#attempt("reset the device", () => pci.reset("client_gone"));
    this.#settling.end();
  }

  /**
   * Unmaps what the client brought, in as many turns of the loop as it takes, and lets the next one in.
   *
   * @param atOnce In one
   */
  #forgetClient(atOnce: boolean): void {
    const { loop, memory, files } = this.#options;
    const reason = this.#goneReason!;
    const until = atOnce ? Infinity : loop.now() + FORGET_MS;
    let left = false;
    this.#attempt("unmap guest memory", () => {
      left = !unmapUntil(memory, () => loop.now() >= until);
    });
    if (left) return this.#forget.schedule();
    this.#forget.cancel();
    this.#goneReason = null;
    this.#settling.close();
    this.#attempt("renew mappable memory", () => files.renew());
    this.#options.onClose(reason);
  }

  #attempt(what: string, step: () => void): boolean {
    try {
      step();
      return true;
    } catch (error) {
      this.#options.log.error(`cannot ${what} after the client has gone`, {
        error,
      });
      return false;
    }
  }

  /** @returns Length of the reply's payload, or −errno */
  #execute(command: number, request: Request): number {
    try {
      // The kernel could not give us all descriptors: going on without them would be a different command.
      if (request.fds.truncated) return -Errno.EMFILE;
      if (this.#commands === null) {
        if (command === VFIO_USER_VERSION) return this.#negotiate(request);
        throw invalid(
          `Cannot ${commandName(command)}: no version is agreed yet`,
        );
      }
      return this.#dispatch(this.#commands, command, request);
    } catch (error) {
      if (error instanceof ErrnoError) {
        this.#note(command, error);
        return -error.errno;
      }
      this.#fault = true;
      this.#logFault(commandName(command), error);
      return -Errno.EIO;
    }
  }

  #dispatch(commands: Commands, command: number, request: Request): number {
    switch (command) {
      case VFIO_USER_REGION_READ:
        if (!this.#underway) this.#counters.regionReads++;
        return commands.regions.read(request);
      case VFIO_USER_REGION_WRITE:
        if (!this.#underway) this.#counters.regionWrites++;
        return commands.regions.write(request);
      case VFIO_USER_REGION_WRITE_MULTI:
        if (!this.#underway) this.#counters.regionWrites++;
        return commands.regions.writeMulti(request);
      case VFIO_USER_DMA_MAP:
        return commands.dma.map(request);
      case VFIO_USER_DMA_UNMAP:
        return commands.dma.unmap(request);
      case VFIO_USER_DEVICE_GET_INFO:
        return deviceInfo(request);
      case VFIO_USER_DEVICE_GET_REGION_INFO:
        return commands.regions.info(request);
      case VFIO_USER_DEVICE_GET_REGION_IO_FDS:
        return commands.doorbells.describe(request);
      case VFIO_USER_DEVICE_GET_IRQ_INFO:
        return commands.irqs.info(request);
      case VFIO_USER_DEVICE_SET_IRQS:
        return commands.irqs.set(request);
      case VFIO_USER_DEVICE_RESET:
        this.#options.pci.reset("device_reset");
        return 0;
      case VFIO_USER_VERSION:
        throw invalid("Cannot agree on a version: one is agreed already");
      default:
        // DMA_READ and DMA_WRITE go the other way; DEVICE_FEATURE and MIG_DATA_* need migration.
        throw invalid(`Cannot do ${commandName(command)}: not supported`);
    }
  }

  #negotiate(request: Request): number {
    const { in: view, at, lengthBytes, out, outAt, fds } = request;
    if (fds.count > 0) {
      throw invalid("Cannot agree on a version: descriptors came along");
    }
    const { log, interrupts } = this.#options;
    const { agreement, reply } = negotiate(
      new Uint8Array(view.buffer, view.byteOffset + at, lengthBytes),
      this.#options.limits,
    );
    for (let i = 0; i < reply.length; i++) out.setUint8(outAt + i, reply[i]!);
    this.#commands = this.#makeCommands(agreement);
    this.#hello.cancel();
    interrupts.connect(this.#commands.irqs);
    if (log.debugEnabled) log.debug("version agreed", { ...agreement });
    return reply.length;
  }

  #makeCommands(
    agreement: Agreement,
    saved?: Saved<CommandsState>,
  ): Commands {
    const { loop, log, pci, interrupts, memory, files } = this.#options;
    const irqs = new Irqs(
      loop,
      log,
      interrupts,
      this.#counters,
      saved && { state: saved.state.irqs, bag: saved.bag.at("irqs") },
    );
    let doorbells: Doorbells;
    try {
      doorbells = new Doorbells(
        loop,
        agreement,
        pci,
        this.#options.writes,
        (region, doorbell) => this.#ring(region, doorbell),
        saved && {
          state: saved.state.doorbells,
          bag: saved.bag.at("doorbells"),
        },
      );
    } catch (error) {
      irqs.close();
      throw error;
    }
    const dma = new DmaCommands(
      memory,
      agreement.maxDmaMaps,
      this.#options.onUnsharedMemory,
      log,
      saved?.state.sharedSeen,
    );
    const regions = new Regions(pci, files, agreement, saved?.state.progress);
    return { agreement, dma, irqs, regions, doorbells };
  }

  #ring(region: number, doorbell: number): void {
    this.#counters.doorbells++;
    try {
      this.#options.pci.device.ringDoorbell!(region, doorbell);
    } catch (error) {
      this.#logFault("a doorbell", error);
      this.close("its doorbell failed in the device");
    }
  }

  /** Something failed that no client can have caused. */
  #logFault(what: string, error: unknown): void {
    const { log, pci } = this.#options;
    const fault = modelFault(error, pci.name);
    if (fault !== null) return log.error(`${what} failed in ${fault}`);
    const stack = error instanceof Error ? error.stack : undefined;
    log.error(`${what} failed: internal error`, { error, stack });
  }

  #reply(
    message: DataView,
    at: number,
    command: number,
    lengthBytes: number,
  ): void {
    const { outgoing, outAt } = this.#connection;
    const sizeBytes = HEADER.SIZE + lengthBytes;
    const id = message.getUint16(at + HEADER.MSG_ID, true);
    outgoing.setUint16(outAt + HEADER.MSG_ID, id, true);
    outgoing.setUint16(outAt + HEADER.CMD, command, true);
    outgoing.setUint32(outAt + HEADER.MSG_SIZE, sizeBytes, true);
    outgoing.setUint32(outAt + HEADER.FLAGS, VFIO_USER_F_TYPE_REPLY, true);
    outgoing.setUint32(outAt + HEADER.ERROR_NO, 0, true);
    this.#connection.send(sizeBytes, this.#request.outFds);
  }

  #dropStray(command: number): void {
    this.#counters.strayReplies++;
    if (this.#options.log.debugEnabled) {
      this.#options.log.debug(
        `dropped a reply to ${commandName(command)}: nobody waits for it`,
      );
    }
  }

  /** The first refused command of a client is worth a warning, the others only a debug message. */
  #note(command: number, error: ErrnoError): void {
    const { log } = this.#options;
    const text = `refused ${commandName(command)}: ${error.message}`;
    if (this.#warned) log.debug(text);
    else log.warn(text);
    this.#warned = true;
  }
}

/**
 * DEVICE_GET_INFO.
 *
 * @throws {ErrnoError} EINVAL
 */
function deviceInfo(request: Request): number {
  checkArgsz(request, "describe the device", DEVICE_INFO.SIZE);
  const { out, outAt } = request;
  const flags = VFIO_DEVICE_FLAGS_PCI | VFIO_DEVICE_FLAGS_RESET;
  out.setUint32(outAt + DEVICE_INFO.ARGSZ, DEVICE_INFO.SIZE, true);
  out.setUint32(outAt + DEVICE_INFO.FLAGS, flags, true);
  out.setUint32(outAt + DEVICE_INFO.NUM_REGIONS, VFIO_PCI_NUM_REGIONS, true);
  out.setUint32(outAt + DEVICE_INFO.NUM_IRQS, VFIO_PCI_NUM_IRQS, true);
  return DEVICE_INFO.SIZE;
}
