import { options, size, type StoreModel, text } from "../mod.ts";

const PIECE = 64 * 1024;

/** A disk from an HTTP server, read by ranges, with a cache in memory: `backend=./examples/http_disk.ts,url=URL`. */
export const store: StoreModel<{ url: string; cache: number }> = {
  name: "http",
  options: options({
    url: text("url", { help: "the image", default: "http://localhost/disk" }),
    cache: size("cache", { help: "how much is kept", default: "64M" }),
  }),
  async open({ url, cache }) {
    let sizeBytes = 0;
    const pieces = new Map<number, Promise<Uint8Array>>();
    async function get(at: number) {
      const headers = { range: `bytes=${at}-${at + PIECE - 1}` };
      const answer = await fetch(url, { headers });
      if (answer.status !== 206) throw new Error(`${url}: ${answer.status}`);
      sizeBytes = Number(answer.headers.get("content-range")?.split("/")[1]);
      return await answer.bytes();
    }
    function piece(at: number) {
      const found = pieces.get(at) ?? get(at);
      pieces.set(at, found);
      found.catch(() => pieces.delete(at));
      if (pieces.size * PIECE > cache) pieces.delete([...pieces.keys()][0]!);
      return found;
    }
    async function read(offset: number, into: Uint8Array) {
      const skip = offset % PIECE;
      const bytes = (await piece(offset - skip)).subarray(skip);
      if (bytes.length === 0) throw new Error(`${url}: it was cut short`);
      into.set(bytes.subarray(0, into.length));
      const left = into.subarray(bytes.length);
      if (left.length > 0) await read(offset + bytes.length, left);
    }
    await piece(0);
    return { info: { sizeBytes }, read };
  },
};
