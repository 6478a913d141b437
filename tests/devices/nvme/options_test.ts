import { createPciDevice } from "../pci_device.ts";
import { assert, assertEquals, assertThrows } from "@std/assert";
import { nvmeModel } from "../../../devices/nvme/mod.ts";
import {
  deriveNamespaceIds,
  deriveNqn,
  deriveSerial,
} from "../../../devices/nvme/admin/identity.ts";
import { NVME_OPTIONS, storageName } from "../../../devices/nvme/options.ts";
import { builtinModels } from "../../../devices/registry.ts";
import { fakeContext } from "../../../src/testing/fake_context.ts";

Deno.test("NVME_OPTIONS.parse has defaults for everything", () => {
  const options = NVME_OPTIONS.parse({});
  assertEquals(
    [options.serial, options.model, options.firmware],
    [null, "Outboard NVMe", "1.0"],
  );
  assertEquals(
    [
      options.queues,
      options.queueEntries,
      options.msix,
      options.mapDoorbells,
    ],
    [64, 1024, true, false],
  );
  assertEquals(options.namespaces.length, 1);
  assertEquals(options.namespaces[0]!.nsid, 1);
  assertEquals(options.namespaces[0]!.block.kind, "memory");
  assertEquals(structuredClone(options), options);
});

Deno.test("NVME_OPTIONS.parse takes one namespace at top level", () => {
  const { namespaces, ...rest } = NVME_OPTIONS.parse({
    file: "a.img",
    readonly: "on",
    serial: "X 1",
    model: "M",
    firmware: "2",
    queues: "3",
    "queue-size": "4096",
    mdts: "6",
    msix: "off",
    doorbells: "mmap",
  });
  assertEquals(rest, {
    serial: "X 1",
    model: "M",
    firmware: "2",
    queues: 3,
    queueEntries: 4096,
    mdts: 6,
    msix: false,
    mapDoorbells: true,
  });
  const [{ nsid, block }] = namespaces as [typeof namespaces[0]];
  assertEquals([nsid, block.kind, block.readonly], [1, "file", true]);
});

Deno.test("NVME_OPTIONS.parse takes several namespaces by number", () => {
  const { namespaces } = NVME_OPTIONS.parse({
    "ns7.memory": "1M",
    "ns2.file": "b.img",
    "ns2.block-size": "4096",
  });
  assertEquals(
    namespaces.map(({ nsid, block }) => [
      nsid,
      block.kind,
      block.logicalBlockBytes,
    ]),
    [[2, "file", 4096], [7, "memory", 512]],
  );
});

Deno.test("NVME_OPTIONS.parse takes options without ns as those of namespace 1", () => {
  const { namespaces } = NVME_OPTIONS.parse({
    "ns2.file": "b.img",
    file: "a.img",
    "ns1.readonly": "on",
  });
  assertEquals(
    namespaces.map(({ nsid, block }) => [
      nsid,
      block.kind === "file" && block.path,
      block.readonly,
    ]),
    [[1, "a.img", true], [2, "b.img", false]],
  );
});

Deno.test("NVME_OPTIONS.parse explains what is wrong", () => {
  const cases: [Record<string, string | string[]>, string][] = [
    [{ nonsense: "1" }, "Cannot use option nonsense"],
    [{ serial: ["a", "b"] }, "Cannot use serial 2 times"],
    [{ serial: "x".repeat(21) }, "1 to 20 printable"],
    [{ serial: "" }, "1 to 20 printable"],
    [{ model: "é" }, "printable ASCII"],
    [{ firmware: "123456789" }, "1 to 8"],
    [{ queues: "0" }, "1 to 64"],
    [{ queues: "65" }, "1 to 64"],
    [{ queues: "two" }, "1 to 64"],
    [{ "queue-size": "1" }, "2 to 4096"],
    [{ "queue-size": "4097" }, "2 to 4096"],
    [{ doorbells: "bells" }, "auto, message or mmap"],
    [{ "ns0.memory": "1M" }, "1 to 32"],
    [{ "ns33.memory": "1M" }, "1 to 32"],
    [
      { file: "a", "ns1.file": "b" },
      "Cannot use file beside ns1.file: both are of ns1",
    ],
    [{ "ns1.nonsense": "b" }, "nonsense"],
    [{ "ns1.file": ["a", "b"] }, "file 2 times"],
  ];
  for (const [options, message] of cases) {
    assertThrows(() => NVME_OPTIONS.parse(options), Error, message);
  }
});

Deno.test("NVME_OPTIONS are known to the parser and unique", () => {
  const names = NVME_OPTIONS.rows.map(({ name }) => name);
  assertEquals(new Set(names).size, names.length);
  assert(names.includes("file"));
  assert(names.includes("nsN.OPTION"));
});

Deno.test("names follow from the storage, and differ", () => {
  const name = (options: Record<string, string>) =>
    storageName(NVME_OPTIONS.parse(options).namespaces);
  assertEquals(name({ file: "a.img" }), name({ file: "a.img", queues: "2" }));
  assert(name({ file: "a.img" }) !== name({ file: "b.img" }));
  assert(name({ "ns2.file": "a.img" }) !== name({ file: "a.img" }));
  assertEquals(name({ memory: "1M" }), null);
  assertEquals(deriveSerial("a"), deriveSerial("a"));
  assert(deriveSerial("a") !== deriveSerial("b"));
  assert(/^OB[0-9A-F]{14}$/.test(deriveSerial("a")));
  assert(
    /^nqn\.2014-08\.org\.nvmexpress:uuid:[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/
      .test(deriveNqn("a")),
  );
  const ids = deriveNamespaceIds("a", 1);
  assertEquals([...ids.eui64.subarray(0, 3)], [0x52, 0x54, 0]);
  assertEquals([...ids.nguid.subarray(8, 11)], [0x52, 0x54, 0]);
});

Deno.test("nvmeModel makes a controller, with names of its own for memory", () => {
  assert(builtinModels.has("nvme"));
  const options = nvmeModel.options!.parse({ memory: "1M" });
  const serials = [1, 2].map((seed) => {
    const context = fakeContext({ seed });
    const device = createPciDevice(nvmeModel, context, options);
    assertEquals(device.readBar(0, 8, 4), 0x10400);
    assertEquals(
      device.spec.capabilities.find((c) => c.kind === "msix")!.vectors,
      65,
    );
    device.close();
    return context.log.at("info")[0]!;
  });
  assert(serials[0] !== serials[1]);
});

Deno.test("nvmeModel leaves nothing behind when storage cannot be opened", () => {
  const options = nvmeModel.options!.parse({
    "ns1.memory": "1M",
    "ns2.file": "/nonexistent/disk.img",
  });
  const fds = [...Deno.readDirSync("/proc/self/fd")].length;
  assertThrows(() => createPciDevice(nvmeModel, fakeContext(), options), Error);
  assertEquals([...Deno.readDirSync("/proc/self/fd")].length, fds);
});
