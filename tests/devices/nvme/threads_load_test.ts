import { assert, assertEquals } from "@std/assert";
import { ThreadsRig } from "./threads_rig.ts";
import type { Pair } from "./naive_driver.ts";
import { seededRandom, Workload } from "./workload.ts";

const SEED = Date.now() >>> 0;
const QUEUES = 6;
const PIECES = 48;
const SIZE = 16;
const ROUNDS = 1500;

/** Random commands on every queue of three threads, whose turns come in any order. */
class Load {
  readonly rig = new ThreadsRig({ threads: 3 });
  readonly loads: Workload[] = [];
  readonly random = seededRandom(SEED);
  resets = 0;
  deletions = 0;
  moves = 0;

  constructor() {
    for (let qid = 1; qid <= QUEUES; qid++) {
      this.loads.push(
        new Workload(
          this.rig.driver,
          this.#create(qid),
          this.random,
          (qid - 1) * PIECES,
          PIECES,
        ),
      );
    }
  }

  /** One event, of all that may happen next. */
  step(): void {
    const { rig, random } = this;
    const at = Math.floor(random() * QUEUES);
    const load = this.loads[at]!;
    const dice = random();
    if (dice < 0.4) load.submit(Math.ceil(random() * 6));
    else if (dice < 0.55) load.reap();
    else if (dice < 0.97) this.#turn();
    else if (dice < 0.98) this.#delete(at);
    else if (dice < 0.984) this.#reset();
    else if (dice < 0.99) this.#move();
    else if (dice < 0.994) rig.device.reset("device_reset"), this.#restart();
    else {
      rig.device.stop();
      for (const member of rig.members) rig.turn(member);
      rig.device.start();
    }
  }

  finish(): void {
    for (const { disk } of this.rig.members) this.#setSlow(disk, false);
    this.rig.settle();
    for (const load of this.loads) {
      load.reap();
      load.verify(() => this.rig.settle());
      assertEquals(load.inFlight, 0);
    }
  }

  #turn(): void {
    const { rig, random } = this;
    const member = rig.members[Math.floor(random() * 3)]!;
    const { disk, context } = member;
    if (random() < 0.1) this.#setSlow(disk, random() < 0.5);
    if (disk.pending.length > 0 && random() < 0.7) {
      disk.finish(Math.floor(random() * disk.pending.length));
    }
    if (random() < 0.2) context.loop.pollOnce();
    else rig.turn(member);
  }

  /** Slow disks may finish in any order; fast ones have nothing left of that. */
  #setSlow(disk: ThreadsRig["control"]["disk"], slow: boolean): void {
    disk.slow = slow;
    if (!slow) disk.drain();
  }

  /** Deletes the submission queue with what is in flight, then its completion queue, and makes both anew. */
  #delete(at: number): void {
    const { driver, control, members } = this.rig;
    const deletion = driver.put(driver.admin, { opcode: 0, cdw10: at + 1 });
    driver.ring(driver.admin);
    this.rig.turn(control);
    for (const { disk } of members) this.#setSlow(disk, false);
    this.rig.settle();
    assertEquals(
      driver.reap(driver.admin).map(({ cid, status }) => [cid, status]),
      [[deletion, 0]],
    );
    this.loads[at]!.reap();
    assertEquals(driver.run({ opcode: 4, cdw10: at + 1 }).status, 0);
    // What is still in flight was not fetched.
    this.loads[at]!.restart(this.#create(at + 1));
    this.deletions++;
  }

  /** Some queues, or all, go to other threads, with commands under way. */
  #move(): void {
    const { random, rig } = this;
    const turns = Array.from(
      { length: QUEUES },
      () => Math.floor(random() * 3),
    );
    for (const { disk } of rig.members) this.#setSlow(disk, false);
    rig.move(random() < 0.2 ? null : turns);
    this.moves++;
  }

  #reset(): void {
    const { driver } = this.rig;
    driver.write(0x14, 0x0046_0000);
    // Some threads have their turn before the control thread carries it out.
    for (let i = 0; i < 3; i++) this.#turn();
    this.rig.settle();
    assertEquals(driver.csts & 1, 0);
    this.#restart();
  }

  #restart(): void {
    const { driver, members } = this.rig;
    for (const { disk } of members) assertEquals(disk.pending.length, 0);
    driver.shadow = null;
    driver.enable();
    if (this.random() < 0.5) driver.configureShadow();
    this.loads.forEach((load, at) => load.restart(this.#create(at + 1)));
    this.resets++;
  }

  #create(qid: number): Pair {
    return this.rig.driver.createPair(qid, SIZE);
  }
}

Deno.test(`queues of three threads lose nothing, whatever happens when (seed ${SEED})`, () => {
  const load = new Load();
  using rig = load.rig;
  for (let i = 0; i < ROUNDS; i++) load.step();
  load.finish();
  assertEquals(rig.counter("invalidDoorbells"), 0);
  assertEquals(rig.counter("failedCommands"), 0);
  for (const wakes of rig.wakes.slice(1)) assert(wakes > 0);
  assert(load.resets > 0 && load.deletions > 0 && load.moves > 0);
});
