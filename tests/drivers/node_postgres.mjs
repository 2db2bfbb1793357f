// Connects with node-postgres and prints what `select 1` returns, or why that failed. Arguments: the host, the port, the
// file of the certificate authority, the password, `postgres` or `direct` for a request for TLS or TLS at once, and
// whether the password is bound to the certificate.
import { readFileSync } from "node:fs";
import pg from "pg";

const [host, port, authority, password, sslnegotiation, enableChannelBinding] = process.argv.slice(2);
const client = new pg.Client({
  host,
  port: Number(port),
  user: "postgres",
  database: "postgres",
  password,
  ssl: { ca: readFileSync(authority, "utf8"), rejectUnauthorized: true },
  sslnegotiation,
  enableChannelBinding: enableChannelBinding === "true",
});
try {
  await client.connect();
  const { rows } = await client.query("select 1 as one");
  console.log(rows[0].one);
  await client.end();
} catch (error) {
  console.log(error.code ?? error.message);
}
