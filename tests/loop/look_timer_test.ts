import { assert, assertEquals } from "@std/assert";
import { LookTimer } from "../../src/loop/look_timer.ts";
import { ManualLoop } from "../../src/testing/manual_loop.ts";

function rig() {
  const loop = new ManualLoop();
  const rig = { loop, looks: 0, finds: false };
  const timer = new LookTimer(loop, () => {
    rig.looks++;
    return rig.finds;
  });
  return Object.assign(rig, { timer });
}

Deno.test("LookTimer looks each millisecond, and twenty times as often while it finds something", () => {
  const it = rig();
  it.loop.advance(10);
  assertEquals(it.looks, 0, "not started");
  it.timer.start();
  it.timer.start();
  it.loop.advance(10);
  assertEquals(it.looks, 10);
  it.finds = true;
  it.loop.advance(1);
  it.looks = 0;
  it.loop.advance(1.01);
  assertEquals(it.looks, 20);
  it.finds = false;
  it.loop.advance(2.05);
  it.looks = 0;
  it.loop.advance(10);
  assertEquals(it.looks, 10, "seldom again");
  it.timer.stop();
  assertEquals(it.loop.timerCount, 0);
});

Deno.test("LookTimer sets no timer while the loop polls, and soon looks when it does not any more", () => {
  const it = rig();
  it.timer.start();
  it.timer.beginPolling();
  it.loop.advance(100);
  assertEquals([it.looks, it.loop.timerCount], [0, 0]);
  it.timer.endPolling();
  it.loop.advance(0.05);
  assertEquals(it.looks, 1);
  it.timer.stop();

  it.timer.beginPolling();
  it.timer.start();
  assertEquals(it.loop.timerCount, 0, "started while the loop polls");
  it.timer.endPolling();
  assertEquals(it.loop.timerCount, 1);
  it.timer.close();
});

Deno.test("LookTimer leaves a timer alone that does not fire within a stretch of polling", () => {
  const it = rig();
  it.timer.start();
  it.loop.advance(0.9);
  it.timer.beginPolling();
  it.timer.endPolling();
  it.loop.advance(0.1);
  assertEquals(it.looks, 1);
  it.timer.close();
});

Deno.test("LookTimer that was stopped stays so when polling ends", () => {
  const it = rig();
  it.timer.start();
  it.timer.beginPolling();
  it.loop.advance(2);
  it.timer.stop();
  it.timer.endPolling();
  assertEquals(it.loop.timerCount, 0);
  it.timer.start();
  assert(it.loop.timerCount === 1);
  it.timer.close();
});
