// Prints the end of every run, whatever becomes of the connection or of this program.
//
//     npm install @nats-io/transport-node @nats-io/jetstream
//     node subscribe.mjs nats://events:PASSWORD@HOST:PORT [NAME]
//
// NAME is this subscriber's place in the stream, which the broker keeps: whoever starts it again goes on where it was.

import { AckPolicy, DeliverPolicy, jetstream, jetstreamManager } from "@nats-io/jetstream";
import { connect } from "@nats-io/transport-node";

const [url, name = "watch-ends-node"] = process.argv.slice(2);
const { host, username, password } = new URL(url);
const connection = await connect({ servers: host, user: username, pass: password, maxReconnectAttempts: -1 });

const manager = await jetstreamManager(connection);
await manager.consumers.add("KFP_EVENTS", {
  durable_name: name,
  filter_subjects: ["succeeded", "failed", "error"].map((end) => `kfp.event.run.${end}.>`),
  deliver_policy: DeliverPolicy.All,
  ack_policy: AckPolicy.Explicit,
});
const consumer = await jetstream(connection).consumers.get("KFP_EVENTS", name);
for await (const message of await consumer.consume()) {
  const run = message.json();
  // The same fact may come twice: it has the same ce-id, and the same ce-position.
  console.log(message.headers.get("ce-position"), run.id, run.name, run.status);
  message.ack();
}
