import {
  assert,
  assertEquals,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import {
  checkIOThreads,
  describeCrowding,
  isSamePlace,
  otherThreads,
  placeDevices,
  placeWithQueue,
  threadsOf,
} from "../../src/runtime/iothread/placement.ts";

function homes(count: number, ...wishes: (number | null)[]): number[] {
  return placeDevices(
    wishes.map((wish, i) => ({
      id: `d${i}`,
      ...(wish === null ? {} : { iothreads: [wish] }),
    })),
    count,
  ).map(({ iothread }) => iothread);
}

Deno.test("placeDevices deals devices round robin", () => {
  assertEquals(homes(1, null, null), [0, 0]);
  assertEquals(homes(3, null, null, null, null, null), [0, 1, 2, 0, 1]);
});

Deno.test("placeDevices puts devices where they want to be, and the others where there is most room", () => {
  assertEquals(homes(2, 0, null), [0, 1]);
  assertEquals(homes(2, null, 0), [1, 0]);
  assertEquals(homes(3, 2, 2, null, null, null), [2, 2, 0, 1, 0]);
});

Deno.test("placeDevices says which IOThreads there are", () => {
  const message = (count: number, ...wishes: number[]) => {
    const text = assertThrows(() => homes(count, ...wishes), Error).message;
    assert(!text.includes("\n"), text);
    return text;
  };
  assertEquals(
    message(2, 0, 2),
    "Cannot put d1 on IOThread 2: there are IOThreads 0 and 1; choose one of them, or start with --iothreads 3",
  );
  assertEquals(
    message(1, 1),
    "Cannot put d0 on IOThread 1: there is only IOThread 0; choose that, or start with --iothreads 2",
  );
  assertEquals(
    message(64, 64),
    "Cannot put d0 on IOThread 64: there are IOThreads 0 to 63; choose one of them",
  );
});

Deno.test("placeDevices keeps a list, whose first is where the device lives", () => {
  const devices = [{ id: "a", iothreads: [1, 0] }, { id: "b" }];
  assertEquals(placeDevices(devices, 2), [
    { iothread: 1, queues: [1, 0] },
    { iothread: 0, queues: [0] },
  ]);
  assertThrows(
    () => placeDevices([{ id: "a", iothreads: [0, 2] }], 2),
    Error,
    "Cannot put a on IOThread 2",
  );
});

Deno.test("checkIOThreads says how many, and which CPUs, are possible", () => {
  checkIOThreads(64, null, []);
  checkIOThreads(2, [[0, 3], [1]], [0, 1, 2, 3]);
  const cases: [number, number[][] | null, string][] = [
    [0, null, "1 to 64"],
    [65, null, "1 to 64"],
    [1.5, null, "1 to 64"],
    [2, [[0]], "one set for each"],
    [1, [[9]], "IOThread 0 on CPU 9: this process may use CPUs 0-2,5"],
    [2, [[0], [3, 4, 5]], "IOThread 1 on CPUs 3-4: this process may use"],
    [1, [[]], "on no CPU"],
  ];
  for (const [count, cpus, expected] of cases) {
    assertThrows(
      () => checkIOThreads(count, cpus, [0, 1, 2, 5]),
      Error,
      expected,
    );
  }
});

Deno.test("describeCrowding tells of more IOThreads than CPUs", () => {
  assertEquals(describeCrowding([[0], [1]]), null);
  assertEquals(describeCrowding([[0, 1], [0, 1]]), null);
  assertStringIncludes(
    describeCrowding([[3], [3]])!,
    "2 IOThreads share CPU 3, ",
  );
  assertStringIncludes(
    describeCrowding([[2], [2, 0], [0]])!,
    "3 IOThreads share CPUs 0,2, ",
  );
});

Deno.test("placeWithQueue moves the group of a queue, and nothing else", () => {
  const place = { iothread: 0, queues: [0, 1] };
  const groups = [0, 0, 1, 1, 2, 2, -1];
  assertEquals(placeWithQueue("d", place, groups, 1, 2), {
    iothread: 0,
    queues: [2, 1, 0],
  });
  assertEquals(placeWithQueue("d", place, groups, 5, 1).queues, [0, 1, 1]);
  for (
    const [queue, reason] of [
      [6, "it stays with the device, move d as a whole"],
      [7, "queues that can be moved are 0 to 5"],
    ] as const
  ) {
    assertThrows(
      () => placeWithQueue("d", place, groups, queue, 1),
      Error,
      `Cannot move queue ${queue} of d: ${reason}`,
    );
  }
});

Deno.test("placeWithQueue moves a device as a whole whose queues stay together", () => {
  const place = { iothread: 0, queues: [0] };
  for (const groups of [[], [-1, -1]]) {
    assertEquals(placeWithQueue("d", place, groups, 0, 1), {
      iothread: 1,
      queues: [1],
    });
  }
});

Deno.test("isSamePlace compares turns by what they mean", () => {
  const place = { iothread: 0, queues: [0, 1] };
  assert(isSamePlace(place, { iothread: 0, queues: [0, 1, 0, 1] }));
  assert(!isSamePlace(place, { iothread: 0, queues: [0, 1, 1] }));
  assert(!isSamePlace(place, { iothread: 1, queues: [0, 1] }));
  assertEquals(otherThreads({ iothread: 1, queues: [0, 1, 2, 0] }), [0, 2]);
  assertEquals(threadsOf({ iothread: 1, queues: [0, 1] }), [1, 0]);
});
