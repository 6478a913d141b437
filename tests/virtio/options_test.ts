import { assertEquals, assertThrows } from "@std/assert";
import { OptionError } from "../../src/core/options.ts";
import { UnknownNameError } from "../../src/core/unknown_name.ts";
import {
  mapsNotify,
  ringFeatures,
  VIRTIO_DEFAULTS,
  virtioOptions,
} from "../../src/virtio/options.ts";

/** Feature bits by the standard, section 6. */
function bits(values: Record<string, string>): number[] {
  const features = ringFeatures(virtioOptions().parse(values));
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

Deno.test("virtioOptions offers IN_ORDER without indirect tables only when asked to", () => {
  assertEquals(bits({ indirect: "off" }), [29, 33, 40]);
  assertEquals(bits({ indirect: "off", "in-order": "on" }), [29, 33, 35, 40]);
  assertEquals(bits({ indirect: "off", packed: "on" }), [29, 33, 34, 40]);
});

Deno.test("mapsNotify is what doorbells=mmap asks for, and nothing else does", () => {
  const modes = [{}, { doorbells: "auto" }, { doorbells: "message" }];
  for (const values of modes) {
    assertEquals(mapsNotify(virtioOptions().parse(values)), false);
  }
  assertEquals(mapsNotify(virtioOptions().parse({ doorbells: "mmap" })), true);
  assertEquals(bits({ doorbells: "mmap" }), bits({}));
  assertEquals(bits({ msix: "off" }), bits({}));
});

Deno.test("virtioOptions returns plain data, with the model's defaults", () => {
  const options = virtioOptions(false).parse({ packed: "on" });
  assertEquals(structuredClone(options), {
    ...VIRTIO_DEFAULTS,
    packed: true,
    inOrder: false,
  });
  assertEquals(
    virtioOptions(false).parse({ "in-order": "on" }).inOrder,
    true,
  );
});

Deno.test("virtioOptions has a row for every option, with the model's defaults", () => {
  const rows = virtioOptions(false).rows;
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
  const options = virtioOptions();
  for (const row of options.rows) {
    assertEquals(options.has(row.name), true);
    assertEquals(options.parse({ [row.name]: row.default! }), VIRTIO_DEFAULTS);
  }
  assertEquals(options.has("mac"), false);
});

Deno.test("virtioOptions says what is wrong and what would be right", () => {
  const cases: [Record<string, string | string[]>, string][] = [
    [{ packed: "yes" }, "Cannot use packed=yes: it is on or off"],
    [{ indirect: "" }, 'Cannot use indirect="": it is on or off'],
    [{ packed: ["on", "on"] }, "Cannot use packed 2 times: give it once"],
    [
      { doorbells: "on" },
      "Cannot use doorbells=on: it is auto, message or mmap",
    ],
    [{ doorbells: ["mmap", "auto"] }, "Cannot use doorbells 2 times"],
  ];
  for (const [values, message] of cases) {
    assertThrows(() => virtioOptions().parse(values), OptionError, message);
  }
  assertThrows(
    () => virtioOptions().parse({ ring: "on" }, "a card"),
    UnknownNameError,
    "Cannot use option ring: a card has packed, in-order",
  );
});
