import { assertEquals, assertThrows } from "@std/assert";
import { ErrnoError } from "../../src/core/errno.ts";
import {
  isVirtioOption,
  mapsNotify,
  parseVirtioOptions,
  ringFeatures,
  VIRTIO_DEFAULTS,
  virtioOptionTable,
} from "../../src/virtio/options.ts";

/** Feature bits by the standard, section 6. */
function bits(values: Record<string, string>): number[] {
  const features = ringFeatures(parseVirtioOptions(values));
  return Array.from({ length: 64 }, (_, i) => i).filter((i) => features.has(i));
}

Deno.test("ringFeatures offers what the options say, and RING_RESET", () => {
  assertEquals(bits({}), [28, 29, 33, 35, 40]);
  const off = {
    "iommu-platform": "off",
    "in-order": "off",
    "event-idx": "off",
    "indirect": "off",
  };
  assertEquals(bits(off), [40]);
  assertEquals(bits({ ...off, "in-order": "on" }), [35, 40]);
  assertEquals(bits({ ...off, "event-idx": "on" }), [29, 40]);
  assertEquals(bits({ ...off, "indirect": "on" }), [28, 40]);
  assertEquals(bits({ ...off, "packed": "on" }), [34, 40]);
  assertEquals(bits({ ...off, "notification-data": "on" }), [38, 40]);
  assertEquals(bits({ ...off, "iommu-platform": "on" }), [33, 40]);
});

Deno.test("parseVirtioOptions offers IN_ORDER without indirect tables only when asked to", () => {
  assertEquals(bits({ indirect: "off" }), [29, 33, 40]);
  assertEquals(bits({ indirect: "off", "in-order": "on" }), [29, 33, 35, 40]);
  assertEquals(bits({ indirect: "off", packed: "on" }), [29, 33, 34, 40]);
});

Deno.test("mapsNotify is what doorbells=mmap asks for, and nothing else does", () => {
  const modes = [{}, { doorbells: "auto" }, { doorbells: "message" }];
  for (const values of modes) {
    assertEquals(mapsNotify(parseVirtioOptions(values)), false);
  }
  assertEquals(mapsNotify(parseVirtioOptions({ doorbells: "mmap" })), true);
  assertEquals(bits({ doorbells: "mmap" }), bits({}));
  assertEquals(bits({ msix: "off" }), bits({}));
});

Deno.test("parseVirtioOptions returns plain data, with the model's defaults", () => {
  const options = parseVirtioOptions({ packed: "on" }, { inOrder: false });
  assertEquals(structuredClone(options), {
    ...VIRTIO_DEFAULTS,
    packed: true,
    inOrder: false,
  });
  assertEquals(
    parseVirtioOptions({ "in-order": "on" }, { inOrder: false }).inOrder,
    true,
  );
});

Deno.test("virtioOptionTable has a row for every option, with the model's defaults", () => {
  const rows = virtioOptionTable({ inOrder: false });
  assertEquals(rows.map((row) => `${row.name}=${row.default}`), [
    "packed=off",
    "in-order=off",
    "event-idx=on",
    "indirect=on",
    "notification-data=off",
    "iommu-platform=on",
    "msix=on",
    "doorbells=auto",
  ]);
  for (const row of virtioOptionTable()) {
    assertEquals(isVirtioOption(row.name), true);
    assertEquals(
      parseVirtioOptions({ [row.name]: row.default }),
      VIRTIO_DEFAULTS,
    );
  }
  assertEquals(isVirtioOption("mac"), false);
});

Deno.test("parseVirtioOptions says what is wrong and what would be right", () => {
  const cases: [Record<string, string | string[]>, string][] = [
    [{ packed: "yes" }, "Cannot use packed=yes: it is on or off"],
    [{ indirect: "" }, "Cannot use indirect=: it is on or off"],
    [{ packed: ["on", "on"] }, "Cannot use packed 2 times: give it once"],
    [{ doorbells: "on" }, "Cannot use doorbells=on: it is auto, message, mmap"],
    [{ doorbells: ["mmap", "auto"] }, "Cannot use doorbells 2 times"],
    [{ ring: "on" }, "Cannot use ring: it is no option of virtio queues"],
  ];
  for (const [values, message] of cases) {
    assertThrows(() => parseVirtioOptions(values), ErrnoError, message);
  }
});
