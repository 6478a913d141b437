/**
 * Plain data as bytes: null, undefined, truth values, numbers, bigints, strings, and arrays, objects and typed arrays of
 * them.
 *
 * ```text
 *   value    = tag (u8), then by tag
 *   number   = f64                        string = length (u32), UTF-16 units (u16 each)
 *   bigint   = string, decimal            array  = count (u32), values
 *   bytes    = kind (u8), length in bytes (u32), bytes
 *   object   = count (u32), as often: key (string), value
 * ```
 * All little-endian. For use on a thread that never returns to its runtime, which frees what `node:v8` serializes only
 * then.
 *
 * @module
 */

const Tag = {
  NULL: 0,
  UNDEFINED: 1,
  FALSE: 2,
  TRUE: 3,
  NUMBER: 4,
  BIGINT: 5,
  STRING: 6,
  ARRAY: 7,
  OBJECT: 8,
  BYTES: 9,
} as const;

/** Views that are kept as bytes; the index is the `kind`. */
const VIEWS: readonly (new (buffer: ArrayBuffer) => ArrayBufferView)[] = [
  DataView,
  Int8Array,
  Uint8Array,
  Uint8ClampedArray,
  Int16Array,
  Uint16Array,
  Int32Array,
  Uint32Array,
  Float32Array,
  Float64Array,
  BigInt64Array,
  BigUint64Array,
];
/** The `kind` of an ArrayBuffer. */
const BUFFER_KIND = 0xff;

const FIRST_BYTES = 256;
/** Deeper than any message; what contains itself is found by it. */
const DEPTH_MAX = 100;

/**
 * Encodes a value.
 *
 * @param value Plain data without cycles
 * @returns Bytes that share no memory with the value
 * @throws {TypeError} When something in it is no plain data, with its place
 */
export function encodePlainData(value: unknown): Uint8Array<ArrayBuffer> {
  const writer = new Writer();
  writer.value(value, 0);
  return writer.bytes();
}

/**
 * Decodes what {@linkcode encodePlainData} gave.
 *
 * @returns A value that shares no memory with the bytes
 * @throws {Error} When the bytes are something else
 */
export function decodePlainData(bytes: Uint8Array): unknown {
  return new Reader(bytes).whole();
}

class Writer {
  #view = new DataView(new ArrayBuffer(FIRST_BYTES));
  #at = 0;
  /** Path from the value to the part at hand, for messages. */
  readonly #path: (string | number)[] = [];

  bytes(): Uint8Array<ArrayBuffer> {
    return new Uint8Array(this.#view.buffer, 0, this.#at);
  }

  value(value: unknown, depth: number): void {
    switch (typeof value) {
      case "undefined":
        return this.#u8(Tag.UNDEFINED);
      case "boolean":
        return this.#u8(value ? Tag.TRUE : Tag.FALSE);
      case "number":
        return this.#f64(value);
      case "bigint":
        this.#u8(Tag.BIGINT);
        return this.#string(String(value));
      case "string":
        this.#u8(Tag.STRING);
        return this.#string(value);
      case "object":
        if (value === null) return this.#u8(Tag.NULL);
        if (depth === DEPTH_MAX) throw this.#refused("nested too deep");
        return this.#object(value, depth + 1);
      default:
        throw this.#refused(`a ${typeof value}`);
    }
  }

  #object(value: object, depth: number): void {
    if (Array.isArray(value)) return this.#array(value, depth);
    const prototype = Object.getPrototypeOf(value);
    if (prototype === ArrayBuffer.prototype) {
      return this.#raw(BUFFER_KIND, new Uint8Array(value as ArrayBuffer));
    }
    const kind = VIEWS.findIndex((type) => type.prototype === prototype);
    if (kind >= 0) {
      const { buffer, byteOffset, byteLength } = value as ArrayBufferView;
      return this.#raw(kind, new Uint8Array(buffer, byteOffset, byteLength));
    }
    if (prototype !== null && prototype !== Object.prototype) {
      throw this.#refused(`a ${prototype.constructor?.name ?? "object"}`);
    }
    const entries = Object.entries(value);
    this.#u8(Tag.OBJECT);
    this.#u32(entries.length);
    for (const [key, field] of entries) {
      this.#string(key);
      this.#path.push(key);
      this.value(field, depth);
      this.#path.pop();
    }
  }

  #array(values: readonly unknown[], depth: number): void {
    this.#u8(Tag.ARRAY);
    this.#u32(values.length);
    for (let i = 0; i < values.length; i++) {
      this.#path.push(i);
      this.value(values[i], depth);
      this.#path.pop();
    }
  }

  #raw(kind: number, bytes: Uint8Array): void {
    this.#u8(Tag.BYTES);
    this.#u8(kind);
    this.#u32(bytes.length);
    const at = this.#take(bytes.length);
    new Uint8Array(this.#view.buffer).set(bytes, at);
  }

  #string(text: string): void {
    this.#u32(text.length);
    const at = this.#take(text.length * 2);
    for (let i = 0; i < text.length; i++) {
      this.#view.setUint16(at + i * 2, text.charCodeAt(i), true);
    }
  }

  #f64(value: number): void {
    this.#u8(Tag.NUMBER);
    const at = this.#take(8);
    this.#view.setFloat64(at, value, true);
  }

  #u8(value: number): void {
    const at = this.#take(1);
    this.#view.setUint8(at, value);
  }

  #u32(value: number): void {
    const at = this.#take(4);
    this.#view.setUint32(at, value, true);
  }

  /** Makes room for some bytes, in another buffer if need be; returns where. */
  #take(lengthBytes: number): number {
    const at = this.#at;
    const end = at + lengthBytes;
    if (end > this.#view.byteLength) {
      const bytes = new Uint8Array(Math.max(end, this.#view.byteLength * 2));
      bytes.set(this.bytes());
      this.#view = new DataView(bytes.buffer);
    }
    this.#at = end;
    return at;
  }

  #refused(what: string): TypeError {
    const place = this.#path.length === 0 ? "it" : this.#path.join(".");
    return new TypeError(`Cannot write plain data: ${place} is ${what}`);
  }
}

class Reader {
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  #at = 0;

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  }

  whole(): unknown {
    const value = this.#value(0);
    if (this.#at === this.#bytes.length) return value;
    throw new Error(
      `Cannot read plain data: ${this.#at} of ${this.#bytes.length} bytes are a value`,
    );
  }

  #value(depth: number): unknown {
    const tag = this.#view.getUint8(this.#take(1));
    switch (tag) {
      case Tag.NULL:
        return null;
      case Tag.UNDEFINED:
        return undefined;
      case Tag.FALSE:
        return false;
      case Tag.TRUE:
        return true;
      case Tag.NUMBER:
        return this.#view.getFloat64(this.#take(8), true);
      case Tag.BIGINT:
        return BigInt(this.#string());
      case Tag.STRING:
        return this.#string();
      case Tag.BYTES:
        return this.#raw();
      case Tag.ARRAY:
      case Tag.OBJECT:
        if (depth === DEPTH_MAX) break;
        return tag === Tag.ARRAY
          ? this.#array(depth + 1)
          : this.#object(depth + 1);
    }
    throw new Error(`Cannot read plain data: no value has the tag ${tag}`);
  }

  #array(depth: number): unknown[] {
    const count = this.#u32();
    const values: unknown[] = [];
    for (let i = 0; i < count; i++) values.push(this.#value(depth));
    return values;
  }

  #object(depth: number): Record<string, unknown> {
    const count = this.#u32();
    const entries: [string, unknown][] = [];
    for (let i = 0; i < count; i++) {
      const key = this.#string();
      entries.push([key, this.#value(depth)]);
    }
    // Not by assignment: a key may be "__proto__".
    return Object.fromEntries(entries);
  }

  #raw(): ArrayBuffer | ArrayBufferView {
    const kind = this.#view.getUint8(this.#take(1));
    const at = this.#take(this.#u32());
    const { buffer } = new Uint8Array(this.#bytes.subarray(at, this.#at));
    if (kind === BUFFER_KIND) return buffer;
    const View = VIEWS[kind];
    if (View !== undefined) return new View(buffer);
    throw new Error(`Cannot read plain data: no bytes have the kind ${kind}`);
  }

  #string(): string {
    const length = this.#u32();
    const at = this.#take(length * 2);
    let text = "";
    for (let i = 0; i < length; i++) {
      text += String.fromCharCode(this.#view.getUint16(at + i * 2, true));
    }
    return text;
  }

  #u32(): number {
    return this.#view.getUint32(this.#take(4), true);
  }

  /** Some bytes; returns where they begin. */
  #take(lengthBytes: number): number {
    const at = this.#at;
    if (at + lengthBytes > this.#bytes.length) {
      throw new Error("Cannot read plain data: it ends too early");
    }
    this.#at = at + lengthBytes;
    return at;
  }
}
