/**
 * Registers as data: an ordered list of names and sizes, from which offsets, dispatch and traces come.
 *
 * @module
 */

/**
 * Accesses of software to a register: `ro` reads only, `rw` writes every bit, `wo` reads as nothing sensible,
 * `rw1c` clears the bits it writes as one, `mixed` differs from bit to bit.
 */
export type RegisterAccess = "ro" | "rw" | "wo" | "rw1c" | "mixed";

/** A row of a register map: name (null for a reserved gap), size in bytes, access (`rw` without it). */
export type RegisterRow = readonly [
  name: string | null,
  sizeBytes: number,
  access?: RegisterAccess,
];

/** The union of the names in a list of rows. */
export type RegisterName<Rows extends readonly RegisterRow[]> = Exclude<
  Rows[number][0],
  null
>;

/** One register. */
export interface Register<Name extends string = string> {
  /** As the specification spells it. */
  readonly name: Name;
  /** In bytes from the start of the map. */
  readonly offset: number;
  /** Its width. */
  readonly sizeBytes: number;
  /** Accesses that software may make. */
  readonly access: RegisterAccess;
  /** Its place among the registers of the map, reserved gaps not counted: good for a switch or a table. */
  readonly index: number;
}

/** A block of registers; a look-up by offset is one array load and allocates nothing. */
export class RegisterMap<Name extends string = string> {
  /** Name of the block, for traces. */
  readonly name: string;
  /** Its length. */
  readonly lengthBytes: number;
  /** All registers in order. */
  readonly registers: readonly Register<Name>[];
  /** First byte of each register. */
  readonly offsets: { readonly [K in Name]: number };
  readonly #byOffset: readonly (Register<Name> | undefined)[];

  /**
   * Lays out the rows.
   *
   * @param name Of the block
   * @param lengthBytes What the specification says the rows sum up to
   * @param rows In order, without gaps that are not rows themselves
   * @throws {Error} When the sum differs, a size is not positive, or a name comes twice: a programmer's error
   */
  constructor(
    name: string,
    lengthBytes: number,
    rows: readonly (readonly [Name | null, number, RegisterAccess?])[],
  ) {
    const registers: Register<Name>[] = [];
    const byOffset: (Register<Name> | undefined)[] = [];
    const offsets: Record<string, number> = {};
    for (const [registerName, sizeBytes, access] of rows) {
      if (!Number.isInteger(sizeBytes) || sizeBytes < 1) {
        throw new Error(
          `Cannot lay out ${name}: ${registerName} has ${sizeBytes} bytes`,
        );
      }
      const register = registerName === null ? undefined : {
        name: registerName,
        offset: byOffset.length,
        sizeBytes,
        access: access ?? "rw",
        index: registers.length,
      };
      if (register !== undefined) {
        if (register.name in offsets) {
          throw new Error(`Cannot lay out ${name}: ${register.name} is double`);
        }
        offsets[register.name] = register.offset;
        registers.push(register);
      }
      for (let i = 0; i < sizeBytes; i++) byOffset.push(register);
    }
    if (byOffset.length !== lengthBytes) {
      throw new Error(
        `Cannot lay out ${name}: its registers take ${byOffset.length} bytes, not ${lengthBytes}`,
      );
    }
    this.name = name;
    this.lengthBytes = lengthBytes;
    this.registers = registers;
    this.offsets = Object.freeze(offsets) as { readonly [K in Name]: number };
    this.#byOffset = byOffset;
  }

  /** The register that holds the byte at `offset`; undefined in a gap and outside. */
  at(offset: number): Register<Name> | undefined {
    return this.#byOffset[offset];
  }
}
