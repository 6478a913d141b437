/**
 * The data structures of Identify (NVM Express 1.4, section 5.15; 05h to 08h as in 2.0).
 *
 * @module
 */

import { setU64 } from "../../../src/core/bits.ts";
import {
  NVME_CSI_NVM,
  NVME_NSID_ALL,
  NVME_PAGE_SHIFT_MIN,
  NVME_VS_1_4,
  NvmeIdCns,
  NvmeSc,
  PCI_VENDOR_ID_REDHAT_QUMRANET,
  SQE,
} from "../defs.ts";
import { ASYNC_EVENTS_MAX } from "./events.ts";
import { deriveNamespaceIds, OUI } from "./identity.ts";
import { ERROR_LOG_ENTRIES } from "../io/error_log.ts";
import {
  type Namespace,
  type NamespaceSet,
  NSID_MAX,
} from "../io/namespace.ts";

/** Bytes of every Identify structure. */
export const IDENTIFY_BYTES = 4096;

/** Names of a controller. */
export interface ControllerIdentity {
  /** At most 20 ASCII characters. */
  readonly serial: string;
  /** At most 40 ASCII characters. */
  readonly model: string;
  /** At most 8 ASCII characters. */
  readonly firmware: string;
  /** NVMe qualified name of the subsystem. */
  readonly subnqn: string;
}

/** `struct nvme_id_ctrl` (figure 247). */
const ID_CTRL = {
  VID: 0,
  SSVID: 2,
  SN: 4,
  MN: 24,
  FR: 64,
  RAB: 72,
  IEEE: 73,
  MDTS: 77,
  CNTLID: 78,
  VER: 80,
  OAES: 92,
  CNTRLTYPE: 111,
  OACS: 256,
  ACL: 258,
  AERL: 259,
  FRMW: 260,
  LPA: 261,
  ELPE: 262,
  WCTEMP: 266,
  CCTEMP: 268,
  SQES: 512,
  CQES: 513,
  NN: 516,
  ONCS: 520,
  VWC: 525,
  SGLS: 536,
  SUBNQN: 768,
  PSD0: 2048,
} as const;

/** `struct nvme_id_ns` (figure 245). */
const ID_NS = {
  NSZE: 0,
  NCAP: 8,
  NUSE: 16,
  NSFEAT: 24,
  NLBAF: 25,
  FLBAS: 26,
  DLFEAT: 33,
  NPWG: 64,
  NPWA: 66,
  NPDG: 68,
  NPDA: 70,
  NOWS: 72,
  NSATTR: 99,
  NGUID: 104,
  EUI64: 120,
  LBAF0: 128,
} as const;

/** `struct nvme_id_ns_cs_indep` (2.0, figure 280). */
const ID_NS_CS_INDEP = { NSATTR: 8, NSTAT: 14 } as const;

/** Namespace Identification Descriptor types (figure 250). */
const NidType = { EUI64: 1, NGUID: 2, UUID: 3, CSI: 4 } as const;

/** OACS: Doorbell Buffer Config. */
const OACS_DBBUF = 1 << 8;
/** ONCS: Compare, Dataset Management, Write Zeroes, the Select field of Get Features. */
const ONCS = 1 << 0 | 1 << 2 | 1 << 3 | 1 << 4;
/** OAES: namespace attribute notices. */
const OAES_NS_ATTR = 1 << 8;
/** LPA: Commands Supported and Effects log, extended data for Get Log Page. */
const LPA = 1 << 1 | 1 << 2;
/** FRMW: one firmware slot, read only. */
const FRMW = 1 << 0 | 1 << 1;
/** VWC: there is a volatile write cache; bits 2:1, Flush may name all namespaces. */
const VWC_PRESENT = 1;
const VWC_FLUSH_ALL = 3 << 1;
/** SGLS: SGLs are supported, with no alignment. */
const SGLS = 1;
/** CNTRLTYPE: I/O controller. */
const CNTRLTYPE_IO = 1;
/** Temperatures in kelvins that are too warm, and much too warm. */
const WCTEMP = 343;
const CCTEMP = 353;
/** Abort commands at once, 0's based: each is done when it is fetched. */
const ACL = 3;
const RAB = 3;
const SQES = 0x66;
const CQES = 0x44;
/** Maximum power of the only power state, in centiwatts. */
const POWER_CENTIWATTS = 2500;
const NSFEAT_OPTPERF = 1 << 4;
/** DLFEAT: Write Zeroes may deallocate. */
const DLFEAT_WZ_DEAC = 1 << 3;
const NSATTR_WRITE_PROTECTED = 1;
const NSTAT_READY = 1;

function setText(
  into: Uint8Array,
  at: number,
  lengthBytes: number,
  text: string,
): void {
  into.fill(0x20, at, at + lengthBytes);
  into.set(new TextEncoder().encode(text).subarray(0, lengthBytes), at);
}

/** Answers Identify commands. */
export class Identify {
  #identity: ControllerIdentity;
  readonly #namespaces: NamespaceSet;
  readonly #mdts: number;
  readonly #bytes = new Uint8Array(IDENTIFY_BYTES);
  readonly #view = new DataView(this.#bytes.buffer);

  /** @param mdts Maximum data transfer size, as a power of two of 4 KiB */
  constructor(
    identity: ControllerIdentity,
    namespaces: NamespaceSet,
    mdts: number,
  ) {
    this.#identity = identity;
    this.#namespaces = namespaces;
    this.#mdts = mdts;
  }

  /** Names of the controller. */
  get identity(): ControllerIdentity {
    return this.#identity;
  }

  /** Takes another name. */
  rename(serial: string, subnqn: string): void {
    this.#identity = { ...this.#identity, serial, subnqn };
  }

  /** The structure of the last {@linkcode Identify.build}. */
  get bytes(): Uint8Array {
    return this.#bytes;
  }

  /**
   * Builds what a command asks for.
   *
   * @returns A status
   */
  build(sqe: Uint32Array): number {
    this.#bytes.fill(0);
    const cns = sqe[SQE.CDW10]! & 0xff;
    const nsid = sqe[SQE.NSID]!;
    const csi = sqe[SQE.CDW11]! >>> 24;
    switch (cns) {
      case NvmeIdCns.CTRL:
        return this.#controller();
      case NvmeIdCns.NS:
        return nsid === NVME_NSID_ALL
          // What namespaces have in common is told where they can be managed.
          ? NvmeSc.INVALID_NS
          : this.#withNamespace(nsid, (ns) => this.#namespace(ns));
      case NvmeIdCns.NS_ACTIVE_LIST:
        return this.#activeList(nsid);
      case NvmeIdCns.NS_DESC_LIST:
        return this.#namespaces.get(nsid) === null
          ? NvmeSc.INVALID_NS
          : this.#withNamespace(nsid, (ns) => this.#descriptors(ns));
      case NvmeIdCns.NS_CS_INDEP:
        return this.#withNamespace(nsid, (ns) => this.#independent(ns));
      case NvmeIdCns.CS_NS:
        return csi === NVME_CSI_NVM
          // No end-to-end protection: the structure of the NVM command set is all zeroes.
          ? this.#withNamespace(nsid, () => {})
          : NvmeSc.INVALID_FIELD;
      case NvmeIdCns.CS_CTRL:
        // Of the NVM command set, no limits but those of the commands themselves: all zeroes.
        return csi === NVME_CSI_NVM ? NvmeSc.SUCCESS : NvmeSc.INVALID_FIELD;
      case NvmeIdCns.NS_ACTIVE_LIST_CS:
        return csi === NVME_CSI_NVM
          ? this.#activeList(nsid)
          : NvmeSc.INVALID_FIELD;
      default:
        return NvmeSc.INVALID_FIELD;
    }
  }

  /** A number that no namespace has leaves the structure empty (section 5.15.2.1). */
  #withNamespace(nsid: number, fill: (ns: Namespace) => void): number {
    if (!this.#namespaces.isValid(nsid)) return NvmeSc.INVALID_NS;
    const ns = this.#namespaces.get(nsid);
    if (ns !== null) fill(ns);
    return NvmeSc.SUCCESS;
  }

  #controller(): number {
    const { serial, model, firmware, subnqn } = this.#identity;
    const bytes = this.#bytes;
    const view = this.#view;
    view.setUint16(ID_CTRL.VID, PCI_VENDOR_ID_REDHAT_QUMRANET, true);
    view.setUint16(ID_CTRL.SSVID, PCI_VENDOR_ID_REDHAT_QUMRANET, true);
    setText(bytes, ID_CTRL.SN, 20, serial);
    setText(bytes, ID_CTRL.MN, 40, model);
    setText(bytes, ID_CTRL.FR, 8, firmware);
    bytes[ID_CTRL.RAB] = RAB;
    bytes.set(OUI.toReversed(), ID_CTRL.IEEE);
    bytes[ID_CTRL.MDTS] = this.#mdts;
    view.setUint16(ID_CTRL.CNTLID, 0, true);
    view.setUint32(ID_CTRL.VER, NVME_VS_1_4, true);
    view.setUint32(ID_CTRL.OAES, OAES_NS_ATTR, true);
    bytes[ID_CTRL.CNTRLTYPE] = CNTRLTYPE_IO;
    view.setUint16(ID_CTRL.OACS, OACS_DBBUF, true);
    bytes[ID_CTRL.ACL] = ACL;
    bytes[ID_CTRL.AERL] = ASYNC_EVENTS_MAX - 1;
    bytes[ID_CTRL.FRMW] = FRMW;
    bytes[ID_CTRL.LPA] = LPA;
    bytes[ID_CTRL.ELPE] = ERROR_LOG_ENTRIES - 1;
    view.setUint16(ID_CTRL.WCTEMP, WCTEMP, true);
    view.setUint16(ID_CTRL.CCTEMP, CCTEMP, true);
    bytes[ID_CTRL.SQES] = SQES;
    bytes[ID_CTRL.CQES] = CQES;
    view.setUint32(ID_CTRL.NN, NSID_MAX, true);
    view.setUint16(ID_CTRL.ONCS, ONCS, true);
    bytes[ID_CTRL.VWC] = VWC_FLUSH_ALL |
      (this.#namespaces.volatileCache ? VWC_PRESENT : 0);
    view.setUint32(ID_CTRL.SGLS, SGLS, true);
    bytes.set(new TextEncoder().encode(subnqn), ID_CTRL.SUBNQN);
    view.setUint16(ID_CTRL.PSD0, POWER_CENTIWATTS, true);
    return NvmeSc.SUCCESS;
  }

  #namespace(ns: Namespace): void {
    const bytes = this.#bytes;
    const view = this.#view;
    const { info } = ns.backend;
    setU64(view, ID_NS.NSZE, ns.blocks);
    setU64(view, ID_NS.NCAP, ns.blocks);
    setU64(view, ID_NS.NUSE, ns.blocks);
    bytes[ID_NS.NSFEAT] = NSFEAT_OPTPERF;
    const physical = this.#zeroBased(ns, info.physicalBlockBytes);
    const discard = this.#zeroBased(ns, info.discardGranularityBytes);
    view.setUint16(ID_NS.NPWG, physical, true);
    view.setUint16(ID_NS.NPWA, physical, true);
    view.setUint16(ID_NS.NPDG, discard, true);
    view.setUint16(ID_NS.NPDA, discard, true);
    view.setUint16(ID_NS.NOWS, this.#optimalBlocks(ns) - 1, true);
    if (info.discardGranularityBytes > 0) {
      bytes[ID_NS.DLFEAT] = DLFEAT_WZ_DEAC;
    }
    if (info.readonly) bytes[ID_NS.NSATTR] = NSATTR_WRITE_PROTECTED;
    const ids = deriveNamespaceIds(this.#identity.serial, ns.nsid);
    bytes.set(ids.nguid, ID_NS.NGUID);
    bytes.set(ids.eui64, ID_NS.EUI64);
    // LBADS, in bits 23:16 of the only format.
    view.setUint32(ID_NS.LBAF0, ns.lbaShift << 16, true);
  }

  /** Blocks of the best size of a write: as many as are whole units of NPWG, and fit a command. */
  #optimalBlocks(ns: Namespace): number {
    const { physicalBlockBytes, optimalBytes } = ns.backend.info;
    const unit = this.#zeroBased(ns, physicalBlockBytes) + 1;
    const most = Math.min(
      optimalBytes,
      2 ** (this.#mdts + NVME_PAGE_SHIFT_MIN),
    );
    const blocks = this.#zeroBased(ns, most) + 1;
    return Math.max(Math.floor(blocks / unit), 1) * unit;
  }

  /** Bytes as blocks, 0's based; at least a block. */
  #zeroBased(ns: Namespace, bytes: number): number {
    return Math.min(
      Math.max(Math.floor(bytes / 2 ** ns.lbaShift), 1) - 1,
      0xffff,
    );
  }

  #activeList(after: number): number {
    if (after >= NVME_NSID_ALL - 1) return NvmeSc.INVALID_NS;
    let at = 0;
    for (const { nsid } of this.#namespaces.all) {
      if (nsid <= after || at === IDENTIFY_BYTES) continue;
      this.#view.setUint32(at, nsid, true);
      at += 4;
    }
    return NvmeSc.SUCCESS;
  }

  #descriptors(ns: Namespace): void {
    let at = 0;
    const add = (type: number, nid: Uint8Array) => {
      this.#bytes[at] = type;
      this.#bytes[at + 1] = nid.length;
      this.#bytes.set(nid, at + 4);
      at += 4 + nid.length;
    };
    const ids = deriveNamespaceIds(this.#identity.serial, ns.nsid);
    add(NidType.EUI64, ids.eui64);
    add(NidType.NGUID, ids.nguid);
    add(NidType.UUID, ids.uuid);
    add(NidType.CSI, Uint8Array.of(NVME_CSI_NVM));
  }

  #independent(ns: Namespace): void {
    this.#bytes[ID_NS_CS_INDEP.NSATTR] = ns.backend.info.readonly
      ? NSATTR_WRITE_PROTECTED
      : 0;
    this.#bytes[ID_NS_CS_INDEP.NSTAT] = NSTAT_READY;
  }
}
