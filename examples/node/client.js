// Push and pull from Node.js, from the .proto files alone.
//
//     adamserve serve --port 50051
//     npm ci && node client.js 127.0.0.1:50051 job-name 5
//
// It starts a job of one float32 tensor, pushes a fixed gradient a number of times, and prints the parameters' bytes in hex.
"use strict";

const crypto = require("crypto");
const path = require("path");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const [target = "127.0.0.1:50051", job = "node", steps = "5"] = process.argv.slice(2);
const root = path.join(__dirname, "..", "..", "proto");
const files = ["adamserve/v1/control.proto", "adamserve/v1/shard.proto"];
const definition = loader.loadSync(files, { includeDirs: [root], longs: Number, enums: String });
const { ControlService, ShardService } = grpc.loadPackageDefinition(definition).adamserve.v1;
const insecure = grpc.credentials.createInsecure();

const SIZE = 1000;
const PUSHER = "node";
const SESSION = crypto.randomUUID();

function sum32(bytes) {
  const padded = Buffer.concat([bytes, Buffer.alloc(-bytes.length & 3)]);
  let sum = 0;
  for (let i = 0; i < padded.length; i += 4) sum = (sum + padded.readUInt32LE(i)) >>> 0;
  return sum;
}

function chunk(values, start) {
  const data = Buffer.from(values.buffer, values.byteOffset, values.byteLength);
  return { tensor: "w", start, length: values.length, encoding: "ENCODING_FLOAT32", sum32: sum32(data), data };
}

const deadline = () => ({ deadline: Date.now() + 30000 });

function unary(client, method, request) {
  return new Promise((resolve, reject) =>
    client[method](request, new grpc.Metadata(), deadline(), (error, answer) => (error ? reject(error) : resolve(answer))));
}

function send(client, method, messages) {
  return new Promise((resolve, reject) => {
    const call = client[method](new grpc.Metadata(), deadline(), (error, answer) => (error ? reject(error) : resolve(answer)));
    for (const message of messages) call.write(message);
    call.end();
  });
}

function pull(client, shard, into) {
  return new Promise((resolve, reject) => {
    let stamp;
    const call = client.Pull({ job, pusher: PUSHER, session: SESSION, training: true }, new grpc.Metadata(), deadline());
    call.on("data", (part) => {
      stamp = stamp || part.stamp;
      for (const { start, length, data, sum32: sum } of part.chunks || []) {
        if (sum32(data) !== sum) return reject(new Error("checksum"));
        for (let i = 0; i < length; i++) into[start + i] = data.readFloatLE(4 * i);
      }
    });
    call.on("error", reject);
    call.on("end", () => resolve(stamp));
  });
}

async function main() {
  const control = new ControlService(target, insecure);
  const initial = Float32Array.from({ length: SIZE }, (_, i) => Math.fround(i / 7));
  await send(control, "CreateJob", [
    {
      start: {
        name: job,
        tensors: [{ name: "w", shape: [SIZE], dtype: "ENCODING_FLOAT32" }],
        ruleJson: JSON.stringify({ rule: "Adam", lr: 0.01 }),
        consistency: "async",
      },
    },
    { chunks: [chunk(initial, 0)] },
  ]);
  const join = { job, pusher: PUSHER, session: SESSION, leaseS: 10 };
  const { shards } = await unary(control, "GetTopology", { job });
  const clients = shards.map((shard) => new ShardService(shard.endpoint, insecure));
  const joined = await Promise.all(clients.map((client) => unary(client, "Join", join)));
  const seq = Math.max(...joined.map((answer) => answer.lastSeq || 0));
  const parameters = new Float32Array(SIZE);
  for (let step = 1; step <= Number(steps); step++) {
    const stamps = await Promise.all(clients.map((client, i) => pull(client, shards[i], parameters)));
    const gradient = Float32Array.from({ length: SIZE }, (_, i) => Math.fround(Math.fround(i % 11) - 5 + step));
    await Promise.all(
      clients.map((client, i) => {
        const spans = (shards[i].spans || []).map((s) => ({ start: s.start || 0, stop: s.stop }));
        return send(client, "Push", [
          { start: { job, pusher: PUSHER, session: SESSION, seq: seq + step, pulled: stamps[i] } },
          { chunks: spans.map(({ start, stop }) => chunk(gradient.slice(start, stop), start)) },
          { commit: {} },
        ]);
      }),
    );
  }
  await Promise.all(clients.map((client, i) => pull(client, shards[i], parameters)));
  await Promise.all(clients.map((client) => unary(client, "Leave", { job, pusher: PUSHER, session: SESSION })));
  console.log(Buffer.from(parameters.buffer).toString("hex"));
  for (const client of [control, ...clients]) client.close();
}

main().catch((error) => {
  console.error(error.message);
  process.exit(1);
});
