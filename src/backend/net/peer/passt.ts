/**
 * passt, which gives the guest the host's own network without any privilege: how it is found and started.
 *
 * @module
 */

import { environmentVariable } from "../../../core/environment.ts";
import { StateReader } from "../../../core/state_reader.ts";
import { Errno, ErrnoError } from "../../../core/errno.ts";
import { formatExitStatus, type Saved } from "../../../os/mod.ts";
import type { NetBackend, NetContext } from "../contract.ts";
import { StreamBackend } from "../socket/stream_backend.ts";
import { PeerConnector, type PeerProgram } from "./connector.ts";
import type { PasstNetOptions } from "./driver.ts";
import { lastWords, PEER_SOCKET_FD } from "./process.ts";

/** Marks the state of a card on passt. */
const PASST_KIND = "passt";
/** A passt that does not like its options or its host says so and ends within this time, unless the machine is busy. */
const START_MS = 200;
/** The environment variable that names the passt to start, where the option does not. */
const PASST_VARIABLE = "OUTBOARD_PASST";

/**
 * Starts passt.
 *
 * @param saved See {@linkcode import("../driver.ts").OpenNet}
 * @param startMs Longest wait for an end at once
 * @throws {ErrnoError} ENOENT and the like, with the remedy
 */
export function openPasst(
  options: PasstNetOptions,
  context: NetContext,
  saved?: Saved<unknown>,
  startMs: number = START_MS,
): NetBackend {
  const { mtu } = context;
  const make = (saved?: Saved<unknown>) => {
    const program = saved === undefined
      ? findPasst(options.program)
      : new StateReader(saved.state, "passt").text("program");
    return passtProgram(program, options, mtu, startMs);
  };
  return new StreamBackend(
    PASST_KIND,
    context,
    (context, saved) => new PeerConnector(make, context, saved),
    saved,
  );
}

/** Lines that it says of itself whatever happens: no news, and no reason for its end. */
const USUAL = [
  /^Don't run as root/,
  /^Started as root/,
  /^Can't run AVX2 build/,
  /^Failed to send \d+ bytes to syslog/,
  /^No IPv[46] nameserver/,
];

function isProgram(path: string): boolean {
  try {
    const { isFile, mode } = Deno.statSync(path);
    return isFile && ((mode ?? 0) & 0o111) !== 0;
  } catch (error) {
    if (error instanceof Deno.errors.NotCapable) throw error;
    return false;
  }
}

/**
 * Finds the program: a path as it is, a name in PATH.
 *
 * @throws {ErrnoError} ENOENT, with the remedy
 */
function findPasst(program: string | null): string {
  const name = program ?? environmentVariable(PASST_VARIABLE) ?? "passt";
  const candidates = name.includes("/")
    ? [name]
    : (environmentVariable("PATH") ?? "/usr/local/bin:/usr/bin:/bin").split(":")
      .map((folder) => `${folder === "" ? "." : folder}/${name}`);
  const found = candidates.find(isProgram);
  if (found !== undefined) return found;
  throw new ErrnoError(
    Errno.ENOENT,
    name === "passt"
      ? "Cannot use net=passt: passt is not installed, install it (apt install passt, or dnf install passt) " +
        `or name it with passt=PATH or ${PASST_VARIABLE}`
      : `Cannot use net=passt: ${name} is no program, name the one to start with passt=PATH or ${PASST_VARIABLE}`,
  );
}

/** Its command line, for a card with that MTU. */
export function passtArguments(
  options: PasstNetOptions,
  mtu: number,
): string[] {
  return [
    "passt",
    // It then stays our child, and ends with the connection.
    ...["--foreground", "--quiet", "--one-off"],
    ...["--fd", `${PEER_SOCKET_FD}`],
    ...["--mtu", `${mtu}`],
    ...options.tcpPorts.flatMap((spec) => ["--tcp-ports", spec]),
    ...options.udpPorts.flatMap((spec) => ["--udp-ports", spec]),
  ];
}

/**
 * passt for a card with that MTU.
 *
 * @param program Its path, as it was found
 * @param startMs Longest wait for an end at once
 */
function passtProgram(
  program: string,
  options: PasstNetOptions,
  mtu: number,
  startMs: number,
): PeerProgram {
  return {
    name: "passt",
    description: `passt (${program})`,
    usual: USUAL,
    command: {
      program,
      args: passtArguments(options, mtu),
      variables: ["PATH", "LD_LIBRARY_PATH"],
    },
    /** A port that is taken and the like is known at once, and the user is still there to read it. */
    awaitStart(process) {
      const status = process.waitForExit(startMs);
      if (status === null) return;
      const why = lastWords(process.said, USUAL) || formatExitStatus(status);
      throw new ErrnoError(
        Errno.EIO,
        `Cannot use net=passt: ${program} ends at once and says: ${why}`,
      );
    },
    save: () => ({ program }),
  };
}
