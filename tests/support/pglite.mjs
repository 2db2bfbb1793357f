// PGlite on Node.js, on a data directory: runs the SQL of each further argument, and prints the rows of each as a line
// of JSON.
//
//   node pglite.mjs DIRECTORY SQL...

import { PGlite } from "../../pglite/node_modules/@electric-sql/pglite/dist/index.js";

const [directory, ...statements] = process.argv.slice(2);
const pglite = await PGlite.create(`file://${directory}`);
for (const sql of statements) {
  const results = await pglite.exec(sql, { rowMode: "array" });
  console.log(JSON.stringify(results.at(-1)?.rows ?? []));
}
await pglite.close();
