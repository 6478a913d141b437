/**
 * Opening a raw image or a block device: its type, its lock, and its alignment.
 *
 * @module
 */

import { dirname } from "node:path";
import { Errno, ErrnoError } from "../../../core/errno.ts";
import {
  type BlockDeviceSizes,
  blockDeviceSizes,
  type Fd,
  type FileStat,
  FileType,
  fileType,
  isInMemory,
  NativeBuffer,
  openFd,
  removeFile,
  setBlocking,
  statFile,
  truncateFd,
} from "../../../os/mod.ts";
import { libc } from "../../../os/symbols.ts";
import type { Log } from "../../../core/log.ts";
import type { BlockContext, BlockInfo } from "../contract.ts";
import { lockImage, unlockImage } from "./image_lock.ts";
import type { FileBlockOptions } from "./driver.ts";
import { formatSize } from "../../../core/size.ts";

const O_RDONLY = 0;
const O_RDWR = 2;
const O_CREAT = 0o100;
const O_EXCL = 0o200;
const O_NONBLOCK = 0o4000;
const O_DIRECT = Deno.build.arch === "x86_64" ? 0o40000 : 0o200000;
const NEW_IMAGE_MODE = 0o644;
const MAX_TRANSFER_BYTES = 16 * 1024 * 1024;
/** For O_DIRECT where the kernel does not tell: what every disk takes. */
const SAFE_ALIGN = 4096;
/** First bytes of images that are no disk byte by byte; a guest that writes to one as if it were raw destroys it. */
const FORMAT_MAGIC: Readonly<Record<string, string>> = {
  qcow2: "QFI\xfb",
  vmdk: "KDMV",
  vhdx: "vhdxfile",
};

const IS_DIRECTORY = "it is a directory, name a file in it";

/** An open image; owns its descriptor. */
export interface Image {
  readonly fd: Fd;
  /** True for a block device. */
  readonly isDevice: boolean;
  /** True when access never waits for a disk. */
  readonly inMemory: boolean;
  /** The unit that is written without a read, in bytes. */
  readonly physicalBlockBytes: number;
  /** Least that DISCARD frees, in bytes; 0 when it does nothing. */
  readonly discardGranularityBytes: number;
  /** With O_DIRECT: alignment of memory in bytes; else 1. */
  readonly memoryAlign: number;
  /** With O_DIRECT: alignment of lengths in bytes; else 1. */
  readonly lengthAlign: number;
}

/**
 * Opens and locks the image of the options, and makes it where they say so.
 *
 * @throws {ErrnoError} With what is wrong and the remedy; nothing is left open, and what was made goes with the start
 */
export function openImage(
  options: FileBlockOptions,
  { log, onStart }: Pick<BlockContext, "log" | "onStart">,
): Image {
  const [fd, isNew] = openOrCreate(options);
  if (isNew) onStart((started) => endCreation(started, options, log));
  try {
    const stat = statFile(fd.number);
    checkType(options, stat);
    setBlocking(fd.number);
    lockOrExplain(fd.number, options, log);
    if (isNew) {
      const { path, createBytes } = options;
      setImageLength(fd.number, createBytes!, `make image ${path} of`);
    } else {
      checkFormat(fd.number, options);
      mentionSize(stat, options, log);
    }
    const image = describe(fd, stat, options);
    mentionRest(image, options, log);
    return image;
  } catch (error) {
    fd.close();
    throw error;
  }
}

/** Keeps a new image when its device has started, else removes it. */
function endCreation(
  started: boolean,
  { path, createBytes }: FileBlockOptions,
  log: Log,
): void {
  if (started) log.info(`Made image ${path} of ${formatSize(createBytes!)}`);
  else removeFile(path);
}

/**
 * Takes the image behind a descriptor that another back end has opened and locked.
 *
 * @throws {ErrnoError} When it is none; the descriptor is left as it was
 */
export function adoptImage(fd: Fd, options: FileBlockOptions): Image {
  return describe(fd, statFile(fd.number), options);
}

/**
 * Properties of an image, with its present length.
 *
 * @throws {ErrnoError} EINVAL when it is too short for a block
 */
export function imageInfo(image: Image, options: FileBlockOptions): BlockInfo {
  const { path, readonly, logicalBlockBytes, physicalBlockBytes } = options;
  const bytes = imageBytes(image);
  const sizeBytes = bytes - bytes % logicalBlockBytes;
  if (sizeBytes === 0) {
    throw new ErrnoError(
      Errno.EINVAL,
      `Cannot use image ${path}: it has ${bytes} bytes and a block has ${logicalBlockBytes}, ` +
        `give it a size with "truncate -s 10G ${path}"`,
    );
  }
  return {
    sizeBytes,
    logicalBlockBytes,
    physicalBlockBytes: physicalBlockBytes ??
      Math.max(logicalBlockBytes, image.physicalBlockBytes),
    optimalBytes: 0,
    readonly,
    volatileCache: !readonly,
    discardGranularityBytes: image.discardGranularityBytes,
    maxTransferBytes: MAX_TRANSFER_BYTES,
  };
}

function imageBytes(image: Image): number {
  const fd = image.fd.number;
  return image.isDevice
    ? blockDeviceSizes(fd).sizeBytes
    : statFile(fd).sizeBytes;
}

/**
 * Gives up the lock and closes, unless the descriptor was given away.
 *
 * @param shared True when others go on with the same opening of the file, whose lock it is too
 */
export function closeImage(image: Image, shared = false): void {
  if (image.fd.number < 0) return;
  // A ring may hold the file a little longer than this descriptor.
  if (!shared) unlockImage(image.fd.number);
  image.fd.close();
}

function refuse(
  { path }: FileBlockOptions,
  errno: number,
  why: string,
  options: ErrorOptions = {},
): never {
  throw new ErrnoError(errno, `Cannot open image ${path}: ${why}`, options);
}

function openOrCreate(options: FileBlockOptions): [Fd, boolean] {
  const { path, createBytes } = options;
  // Without O_NONBLOCK a FIFO would hold us up before its type is known.
  const flags = (options.readonly ? O_RDONLY : O_RDWR) | O_NONBLOCK |
    (options.direct ? O_DIRECT : 0);
  let isNew = false;
  try {
    try {
      return [openFd(path, flags), false];
    } catch (error) {
      const isMissing = (error as ErrnoError).errno === Errno.ENOENT;
      if (!isMissing || createBytes === null) throw error;
    }
    isNew = true;
    return [openFd(path, flags | O_CREAT | O_EXCL, NEW_IMAGE_MODE), true];
  } catch (error) {
    if (!(error instanceof ErrnoError)) throw error;
    const { errno } = error;
    const why = (isNew ? explainCreation(errno, options) : null) ??
      explain(errno, options);
    if (why === null) throw error;
    return refuse(options, errno, why, { cause: error });
  }
}

/** The reason why a new image cannot be made, where that is its folder. */
function explainCreation(
  errno: number,
  { path }: FileBlockOptions,
): string | null {
  const folder = dirname(path);
  switch (errno) {
    case Errno.ENOENT:
      return `its folder ${folder} does not exist, make that first`;
    case Errno.EACCES:
    case Errno.EPERM:
      return `nothing can be made in its folder ${folder}: not permitted, see "ls -ld ${folder}" and run as a user who may write there`;
    case Errno.EROFS:
      return `nothing can be made in its folder ${folder}: its file system is read-only, choose another one`;
    case Errno.ENOSPC:
      return `nothing can be made in its folder ${folder}: it is full`;
    default:
      return null;
  }
}

function explain(errno: number, options: FileBlockOptions): string | null {
  const { path } = options;
  switch (errno) {
    case Errno.ENOENT:
      return options.readonly
        ? "there is none, name one that exists"
        : "there is none, give create=SIZE (such as create=10G) to make it";
    case Errno.EISDIR:
      return IS_DIRECTORY;
    case Errno.ENOTDIR:
      return "a part of the path is no directory";
    case Errno.EACCES:
    case Errno.EPERM:
      return options.readonly
        ? `not permitted, see "ls -l ${path}" and run as a user who may read it`
        : `not permitted, see "ls -l ${path}" and run as a user who may read and write it, or give readonly=on`;
    case Errno.EROFS:
      return "its file system is read-only, give readonly=on";
    case Errno.ETXTBSY:
      return "it is being executed or used as swap";
    case Errno.EINVAL:
      return options.direct
        ? "its file system has no O_DIRECT, give cache=writeback"
        : null;
    case Errno.EBUSY:
      return "the host uses it, such as by a mounted file system; unmount it first";
    case Errno.ENXIO:
      return "it is a socket, or a device without a driver; a file or a block device is wanted";
    default:
      return null;
  }
}

function checkType(options: FileBlockOptions, { mode }: FileStat): void {
  switch (fileType(mode)) {
    case FileType.REGULAR:
    case FileType.BLOCK:
      return;
    case FileType.DIRECTORY:
      return refuse(options, Errno.EISDIR, IS_DIRECTORY);
    case FileType.CHARACTER:
      return refuse(
        options,
        Errno.EINVAL,
        "it is a character device, a file or a block device is wanted",
      );
    default:
      return refuse(
        options,
        Errno.EINVAL,
        "it is a pipe or a socket, a file or a block device is wanted",
      );
  }
}

function checkFormat(fd: number, options: FileBlockOptions): void {
  // Whole pages, as O_DIRECT wants; where it wants more, the image stays unknown.
  using head = new NativeBuffer(SAFE_ALIGN);
  const length = libc.read(fd, head.pointer(), SAFE_ALIGN);
  const text = String.fromCharCode(
    ...head.bytes.subarray(0, Math.max(0, Math.min(length, 8))),
  );
  for (const [format, magic] of Object.entries(FORMAT_MAGIC)) {
    if (!text.startsWith(magic)) continue;
    refuse(
      options,
      Errno.EINVAL,
      `it is a ${format} image and only raw ones are served, give nbd=unix:SOCKET ` +
        `and serve it there with "qemu-nbd -t -f ${format} -k SOCKET ${options.path}"`,
    );
  }
}

function lockOrExplain(fd: number, options: FileBlockOptions, log: Log): void {
  const { path } = options;
  const result = lockImage(fd, options.readonly);
  if (result === 0) return;
  if (result === -Errno.EAGAIN || result === -Errno.EACCES) {
    refuse(
      options,
      Errno.EBUSY,
      options.readonly
        ? "somebody else writes to it, stop that one first"
        : "somebody else uses it, stop that one first, or give readonly=on to all of them",
    );
  }
  log.warn(
    `${path} cannot be locked on its file system: see to it that nobody else writes to it`,
    { errno: -result },
  );
}

function mentionSize(stat: FileStat, options: FileBlockOptions, log: Log) {
  const { path, createBytes } = options;
  if (createBytes === null || createBytes === stat.sizeBytes) return;
  if (fileType(stat.mode) !== FileType.REGULAR) return;
  log.info(
    `${path} exists and stays as it is, create=${
      formatSize(createBytes)
    } is for a new image`,
    { sizeBytes: stat.sizeBytes },
  );
}

function mentionRest(image: Image, options: FileBlockOptions, log: Log): void {
  const { path, logicalBlockBytes } = options;
  const sizeBytes = imageBytes(image);
  const rest = sizeBytes % logicalBlockBytes;
  if (rest === 0 || rest === sizeBytes) return;
  log.warn(
    `${path} has ${sizeBytes} bytes, no multiple of the block of ${logicalBlockBytes}: the guest does not see the last ${rest}`,
    { sizeBytes },
  );
}

/**
 * Gives an image a length.
 *
 * @param action For the message, such as `make image a.img of`
 * @throws {ErrnoError} EFBIG and the like
 */
export function setImageLength(
  fd: number,
  bytes: number,
  action: string,
): void {
  try {
    truncateFd(fd, bytes);
  } catch (error) {
    if (!(error instanceof ErrnoError)) throw error;
    throw new ErrnoError(
      error.errno,
      `Cannot ${action} ${
        formatSize(bytes)
      }: its file system takes no file of that size`,
      { cause: error },
    );
  }
}

function describe(fd: Fd, stat: FileStat, options: FileBlockOptions): Image {
  const isDevice = fileType(stat.mode) === FileType.BLOCK;
  const sizes = isDevice ? blockDeviceSizes(fd.number) : null;
  const [memoryAlign, lengthAlign] = directAlignment(options, stat, sizes);
  const writable = !options.readonly && options.discard;
  const physical = sizes?.physicalBlockBytes ??
    Math.min(Math.max(stat.blockBytes, 512), SAFE_ALIGN);
  return {
    fd,
    isDevice,
    inMemory: isInMemory(fd.number) && !isDevice,
    physicalBlockBytes: physical,
    discardGranularityBytes: !writable
      ? 0
      : isDevice
      ? deviceDiscardGranularity(stat.device, physical)
      : stat.blockBytes,
    memoryAlign,
    lengthAlign,
  };
}

function directAlignment(
  options: FileBlockOptions,
  stat: FileStat,
  sizes: BlockDeviceSizes | null,
): [number, number] {
  if (!options.direct) return [1, 1];
  const refuse = (state: string): never => {
    throw new ErrnoError(
      Errno.EINVAL,
      `Cannot open image ${options.path} with cache=none: ${state}`,
    );
  };
  if (stat.directKnown && stat.directOffsetAlign === 0) {
    refuse("its file system has no O_DIRECT, give cache=writeback");
  }
  const memory = stat.directMemoryAlign || sizes?.logicalBlockBytes ||
    SAFE_ALIGN;
  const length = stat.directOffsetAlign || sizes?.logicalBlockBytes ||
    options.logicalBlockBytes;
  if (length > options.logicalBlockBytes) {
    refuse(
      length > SAFE_ALIGN
        ? `its blocks have ${length} bytes, give cache=writeback`
        : `its blocks have ${length} bytes, give block-size=${length} or cache=writeback`,
    );
  }
  return [memory, length];
}

function deviceDiscardGranularity(device: string, fallback: number): number {
  for (const place of ["queue", "../queue"]) {
    const path = `/sys/dev/block/${device}/${place}/discard_granularity`;
    try {
      return Number.parseInt(Deno.readTextFileSync(path));
    } catch {
      // A partition has no queue of its own, and sysfs may be hidden.
    }
  }
  return fallback;
}
