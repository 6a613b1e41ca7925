// The hub and agent of the original plan, as far as the wire goes: PUBLISH and XADD with its fields, SUBSCRIBE, XREVRANGE.
//
//   node original.js URL     one JSON object a line on stdin, one on stdout; the end of stdin ends it
//
//   {"do":"subscribe","channel":C}            -> {"subscribed":C}, then {"heard":C,"message":M} for each
//   {"do":"publish","channel":C,"message":M,"how":"both"|"publish"|"stream"}  -> {"published":C,"receivers":N}
//   {"do":"history","channel":C,"count":N}    -> {"history":[M, …]}, the oldest first
"use strict";

const { createClient } = require("redis");
const readline = require("node:readline");

const MAX_STREAM_LENGTH = 1000;
const url = process.argv[2];
const socket = url.startsWith("unix://") ? { socket: { path: url.slice("unix://".length) } } : { url };

function say(what) {
  process.stdout.write(JSON.stringify(what) + "\n");
}

class OriginalBus {
  constructor(client, subscriber) {
    this.client = client;
    this.subscriber = subscriber;
  }

  async subscribe({ channel }) {
    await this.subscriber.subscribe(channel, (text) => say({ heard: channel, message: JSON.parse(text) }));
    say({ subscribed: channel });
  }

  async publish({ channel, message, how }) {
    let receivers = 0;
    if (how !== "publish") {
      await this.client.xAdd(`message-stream:${channel}`, "*", {
        id: message.id,
        timestamp: message.timestamp.toString(),
        type: message.type,
        from: message.from,
        to: message.to || "",
        payload: JSON.stringify(message.payload),
      }, { TRIM: { strategy: "MAXLEN", strategyModifier: "~", threshold: MAX_STREAM_LENGTH } });
    }
    if (how !== "stream") {
      receivers = await this.client.publish(channel, JSON.stringify(message));
    }
    say({ published: channel, receivers });
  }

  async history({ channel, count }) {
    const entries = await this.client.xRevRange(`message-stream:${channel}`, "+", "-", { COUNT: count });
    say({
      history: entries.reverse().map(({ message }) => ({
        id: message.id,
        timestamp: parseInt(message.timestamp, 10),
        type: message.type,
        from: message.from,
        to: message.to || undefined,
        payload: JSON.parse(message.payload),
      })),
    });
  }
}

async function main() {
  const client = createClient(socket);
  const subscriber = client.duplicate();
  for (const one of [client, subscriber]) {
    one.on("error", (error) => say({ error: String(error) }));
    await one.connect();
  }
  const bus = new OriginalBus(client, subscriber);
  say({ ready: true });
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const command = JSON.parse(line);
    await bus[command.do](command);
  }
  client.destroy();
  subscriber.destroy();
}

main().catch((error) => {
  say({ error: String(error) });
  process.exitCode = 1;
});
