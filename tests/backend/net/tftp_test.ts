import { assertThrows } from "@std/assert";
import { silentLog } from "../../../src/core/log.ts";
import type { NetContext } from "../../../src/backend/net/contract.ts";
import { openNetBackend } from "../../../src/backend/net/open.ts";
import { NET_OPTIONS } from "../../../src/backend/net/options.ts";

Deno.test("openNetBackend says what is wrong with a folder of tftp=", () => {
  // Nothing of it is used before the folder is looked at.
  const context = { log: silentLog } as NetContext;
  const open = (tftp: string) => () =>
    openNetBackend(NET_OPTIONS.parse({ tftp }), context);
  const file = Deno.makeTempFileSync();
  try {
    assertThrows(
      open(`${file}.none`),
      Error,
      `Cannot use tftp=${file}.none: there is no such folder`,
    );
    assertThrows(open(file), Error, "it is no folder");
  } finally {
    Deno.removeSync(file);
  }
});
