// PGlite on Node.js, on a data directory or with the archive of one: runs the SQL of each further argument, and prints
// the rows of each as a line of JSON.
//
//   node pglite.mjs DIRECTORY|file.tar|file.tar.gz SQL|dump:FILE...

import { openAsBlob } from "node:fs";
import { writeFile } from "node:fs/promises";
import { PGlite } from "../../pglite/node_modules/@electric-sql/pglite/dist/index.js";

const [origin, ...statements] = process.argv.slice(2);
const isArchive = /\.tar(\.gz)?$/.test(origin);
const options = isArchive
  ? { loadDataDir: await openAsBlob(origin, { type: origin.endsWith(".gz") ? "application/gzip" : "" }) }
  : { dataDir: `file://${origin}` };
const pglite = await PGlite.create(options);
for (const sql of statements) {
  if (sql.startsWith("dump:")) {
    const file = sql.slice("dump:".length);
    const dump = await pglite.dumpDataDir(file.endsWith(".gz") ? "gzip" : "none");
    await writeFile(file, Buffer.from(await dump.arrayBuffer()));
  } else {
    const results = await pglite.exec(sql, { rowMode: "array" });
    console.log(JSON.stringify(results.at(-1)?.rows ?? []));
  }
}
await pglite.close();
