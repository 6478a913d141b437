import { assert, assertEquals } from "@std/assert";
import denoJson from "../deno.json" with { type: "json" };
import { LAYERS } from "../lint/layers.ts";

const root = `${import.meta.dirname}/..`;

/** Files of the checkout, as paths in it. */
function* filesUnder(folder = ""): Generator<string> {
  for (const entry of Deno.readDirSync(`${root}/${folder}`)) {
    if (entry.name === ".git" || entry.name === "node_modules") continue;
    const path = folder + entry.name;
    if (entry.isDirectory) yield* filesUnder(`${path}/`);
    else if (entry.isFile) yield path;
  }
}

const papers = [...filesUnder()].filter((path) => path.endsWith(".md"))
  .map((path) => ({ path, text: Deno.readTextFileSync(`${root}/${path}`) }));

function exists(path: string): boolean {
  try {
    Deno.statSync(path);
    return true;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  }
}

/** Anchors of a paper's headings, as GitHub makes them. */
function anchorsOf(text: string): string[] {
  const prose = text.replaceAll(/^```.*?^```/gms, "");
  return [...prose.matchAll(/^#+ (.+)$/gm)].map(([, title]) =>
    title!.toLowerCase().replaceAll(/[^\p{L}\p{N} _-]/gu, "")
      .replaceAll(" ", "-")
  );
}

Deno.test("the documentation of every entry point is checked", {
  permissions: "none",
}, () => {
  const entries = Object.values(denoJson.exports).map((path) => path.slice(2));
  assertEquals(
    denoJson.tasks.doc.command,
    `deno doc --lint ${entries.join(" ")}`,
  );
});

Deno.test("every relative link of a paper leads to a file, and to a heading where it names one", () => {
  let links = 0;
  const broken: string[] = [];
  for (const { path, text } of papers) {
    for (const [, target] of text.matchAll(/\]\(\s*([^)\s]+)/g)) {
      if (/^[a-z]+:/.test(target!)) continue;
      links++;
      const { pathname, hash } = new URL(target!, `file:///${path}`);
      const file = decodeURIComponent(pathname.slice(1));
      const paper = papers.find(({ path }) => path === file);
      const found = exists(`${root}/${file}`) &&
        (hash === "" ||
          (paper !== undefined &&
            anchorsOf(paper.text).includes(decodeURIComponent(hash.slice(1)))));
      if (!found) broken.push(`${path}: ${target}`);
    }
  }
  assertEquals(broken, []);
  assert(links > 20, `only ${links} links found`);
});

Deno.test("every file and folder of the checkout that a paper names is there", () => {
  const tops = [...Deno.readDirSync(root)].filter((entry) => entry.isDirectory)
    .map(({ name }) => name.replace(".", "\\."));
  const named = new RegExp(
    `(?<![\\w./~-])(?:\\./)?((?:${tops.join("|")})/[\\w./-]*\\w)`,
    "g",
  );
  let names = 0;
  const missing: string[] = [];
  for (const { path, text } of papers) {
    for (const [, file] of text.matchAll(named)) {
      names++;
      if (!exists(`${root}/${file}`)) missing.push(`${path}: ${file}`);
    }
  }
  assertEquals(missing, []);
  assert(names > 20, `only ${names} names found`);
});

Deno.test("README and CONTRIBUTING list the rooms in the linter's order", () => {
  const inTransport = "src/transport/virtio_pci";
  const rooms = LAYERS.slice(1).map((layer) => layer.replace(/\/$/, ""))
    .filter((room) => room !== inTransport).reverse();
  for (const { path, text } of papers) {
    if (path !== "README.md" && path !== "CONTRIBUTING.md") continue;
    const listed = [...text.matchAll(/^(?:\| `)?([\w./]+)`? /gm)]
      .map(([, room]) => room!).filter((room) => rooms.includes(room));
    assertEquals(listed, rooms, path);
  }
});

Deno.test("the glossary has at most 40 words", () => {
  const glossary = papers.find(({ path }) => path === "docs/glossary.md")!;
  const rows = glossary.text.match(/^\| [^-\s]/gm)!.length - 1;
  assert(rows <= 40, `${rows} words`);
});
