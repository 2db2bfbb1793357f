// PGlite on Node.js, for comparison: the only JavaScript of this project, and only `make bench` runs it.
//
//   node pglite.mjs first-answer    starts PGlite, asks SELECT 1 and prints "answered"
//   node pglite.mjs converse        runs the scripts in the JSON on stdin, prints seconds a round as JSON
//   node pglite.mjs serve           serves one client after the other on the loopback interface, prints HOST:PORT
//
// Messages go in as the bytes of the Postgres protocol (execProtocolRaw), which is PGlite's fastest way.

import { readFileSync } from "node:fs";
import { createServer } from "node:net";
import { PGlite } from "../../pglite/node_modules/@electric-sql/pglite/dist/index.js";

const options = { syncToFs: false };

async function firstAnswer() {
  const pglite = await PGlite.create();
  await pglite.query("SELECT 1");
  console.log("answered");
  process.exit(0);
}

async function converse() {
  const { samples, seconds, scripts } = JSON.parse(readFileSync(0, "utf8"));
  const measured = {};
  for (const script of scripts) {
    const pglite = await PGlite.create();
    const [setup, round] = [script.setup, script.round].map((list) => list.map((hex) => Buffer.from(hex, "hex")));
    for (const message of setup) await pglite.execProtocolRaw(message, options);
    const run = async (rounds) => {
      let answer;
      const start = process.hrtime.bigint();
      for (let i = 0; i < rounds; i++) {
        for (const message of round) answer = await pglite.execProtocolRaw(message, options);
      }
      const took = Number(process.hrtime.bigint() - start) / 1e9;
      if (String.fromCharCode(answer[0]) !== script.answer) {
        throw new Error(`${script.name}: ${Buffer.from(answer).toString("latin1")}`);
      }
      return took;
    };
    // Long enough for the clock and for the compilers of the engine, and the same for each sample.
    let rounds = 1;
    while ((await run(rounds)) < seconds) rounds *= 2;
    measured[script.name] = [];
    for (let i = 0; i < samples; i++) measured[script.name].push((await run(rounds)) / rounds);
    await pglite.close();
  }
  console.log(JSON.stringify(measured));
  process.exit(0);
}

async function serve() {
  const pglite = await PGlite.create();
  const server = createServer({ noDelay: true }, (socket) => {
    let received = Buffer.alloc(0);
    // The startup packet has no type in front of its length.
    let head = 0;
    let turn = Promise.resolve();
    socket.on("data", (bytes) => {
      received = received.length ? Buffer.concat([received, bytes]) : bytes;
      let whole = 0;
      while (received.length >= whole + head + 4) {
        const end = whole + head + received.readUInt32BE(whole + head);
        if (received.length < end) break;
        [whole, head] = [end, 1];
      }
      if (whole === 0) return;
      const messages = received.subarray(0, whole);
      received = received.subarray(whole);
      turn = turn.then(async () => socket.write(await pglite.execProtocolRaw(messages, options)));
    });
    socket.on("error", () => {});
  });
  server.listen(0, "127.0.0.1", () => console.log(`127.0.0.1:${server.address().port}`));
}

await { "first-answer": firstAnswer, converse, serve }[process.argv[2]]();
