/**
 * A program for few_fds_test.ts: what happens when a process may open no more descriptors. In a process of its own,
 * because the runtime of one that runs tests opens some at any time, and does not survive it when it cannot.
 *
 * @module
 */

import { assert, assertEquals } from "@std/assert";
import { EventLoop } from "../../../src/loop/event_loop.ts";
import { createEventFd, createMemfd, type Fd } from "../../../src/os/mod.ts";
import { PATIENCE_MS } from "../../until.ts";
import { message, RawClient, words } from "./raw_client.ts";
import { Rig } from "./rig.ts";

/** Lets this process open no more descriptors; the function it returns lifts that. */
function forbidDescriptors(): () => void {
  const limits = Deno.readTextFileSync("/proc/self/limits");
  const [soft, hard] = /Max open files +(\S+) +(\S+)/.exec(limits)!.slice(1);
  const set = (value: string) => {
    const { success } = new Deno.Command("prlimit", {
      args: [`--pid=${Deno.pid}`, `--nofile=${value}:${hard}`],
    }).outputSync();
    assert(success, "prlimit");
  };
  set("256");
  const fillers: Fd[] = [];
  try {
    for (;;) fillers.push(createEventFd());
  } catch {
    // None left, as intended.
  }
  return () => {
    for (const filler of fillers) filler.close();
    set(soft!);
  };
}

function loseDescriptors(): void {
  using rig = new Rig();
  using client = rig.client();
  using memfd = createMemfd("test", 4096);
  const map = message(2, words(32, 3, 0n, 0n, 4096n));
  const allow = forbidDescriptors();
  try {
    const reply = client.request(rig.loop, map, [memfd.number]);
    assertEquals(reply.errno, 24);
    assertEquals(rig.memory.count, 0);
  } finally {
    allow();
  }
  assertEquals(client.request(rig.loop, map, [memfd.number]).errno, 0);
}

function acceptNobody(): void {
  const loop = new EventLoop();
  const makeTimer = loop.timer.bind(loop);
  // The pause begins when the test has seen that there is one.
  let beginPause = () => {};
  loop.timer = (callback) => {
    const timer = makeTimer(callback);
    const arm = timer.arm.bind(timer);
    timer.arm = (delayMs) => {
      beginPause = () => arm(delayMs);
    };
    return timer;
  };
  using rig = new Rig({}, loop);
  using client = RawClient.connect(rig.path);
  const allow = forbidDescriptors();
  try {
    assert(rig.loop.turn(0), "it tries");
    for (let i = 0; i < 10; i++) assert(!rig.loop.turn(0), "it waits");
    const failures = rig.logged.filter((line) => line.includes("EMFILE"));
    assertEquals(failures.length, 1);
    beginPause();
    rig.loop.turn(PATIENCE_MS);
    assert(rig.loop.turn(0), "it tries again");
    assertEquals(
      rig.logged.filter((line) => line.includes("EMFILE")).length,
      1,
      "said once",
    );
  } finally {
    allow();
  }
  beginPause();
  client.send(message(13));
  for (let i = 0; i < 5 && rig.clients.length === 0; i++) {
    rig.loop.turn(PATIENCE_MS);
  }
  assertEquals(rig.clients, ["connected self"]);
}

const [scenario] = Deno.args;
if (scenario === "lose") loseDescriptors();
else if (scenario === "accept") acceptNobody();
else throw new Error(`There is no scenario ${scenario}`);
