import { assertEquals } from "@std/assert";
import {
  debianMirrorSources,
  ownReleaseSources,
  parseDeb822Sources,
  parseSourcesList,
} from "./apt.ts";

Deno.test("parseSourcesList reads binary sources with their options", () => {
  const text = `# a comment
deb http://mirror.example/debian bookworm main contrib # trailing
deb-src http://mirror.example/debian bookworm main
deb [arch=amd64 signed-by=/keys/a.gpg,/keys/b.gpg] https://other.example bookworm stable
`;
  assertEquals(parseSourcesList(text), [
    {
      uris: ["http://mirror.example/debian"],
      suites: ["bookworm"],
      components: ["main", "contrib"],
      signedBy: "",
    },
    {
      uris: ["https://other.example"],
      suites: ["bookworm"],
      components: ["stable"],
      signedBy: "/keys/a.gpg /keys/b.gpg",
    },
  ]);
});

Deno.test("parseDeb822Sources reads paragraphs, and skips what is disabled", () => {
  const text = `Types: deb deb-src
# a comment
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /keys/a.gpg

Types: deb
Enabled: no
URIs: http://mirror.example/off
Suites: bookworm
Components: main

Types: deb
URIs: http://mirror.example/inline
Suites: bookworm
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc
`;
  assertEquals(parseDeb822Sources(text), [
    {
      uris: ["http://mirror.example/debian"],
      suites: ["bookworm", "bookworm-updates"],
      components: ["main"],
      signedBy: "/keys/a.gpg",
    },
    {
      uris: ["http://mirror.example/inline"],
      suites: ["bookworm"],
      components: ["main"],
      signedBy: "\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc",
    },
  ]);
});

Deno.test("debianMirrorSources prefers what looks like a Debian mirror", () => {
  const sources = parseSourcesList(`
deb https://vendor.example/apt bookworm main
deb http://mirror.example/debian bookworm main contrib
deb http://mirror.example/debian-security bookworm-security main
`);
  const found = debianMirrorSources(sources, "bookworm", ["trixie"]);
  assertEquals(found.map((source) => source.uris[0]), [
    "http://mirror.example/debian",
    "https://vendor.example/apt",
  ]);
  assertEquals(found[0]?.suites, ["trixie"]);
  assertEquals(found[0]?.components, ["main"]);
});

Deno.test("ownReleaseSources keeps the suites of the release", () => {
  const sources = parseSourcesList(`
deb http://mirror.example/debian bookworm main
deb http://mirror.example/debian-security bookworm-security main
deb http://mirror.example/debian trixie main
deb http://other.example vendor-bookworm main
`);
  assertEquals(
    ownReleaseSources(sources, "bookworm").map((source) => source.suites[0]),
    ["bookworm", "bookworm-security"],
  );
});
