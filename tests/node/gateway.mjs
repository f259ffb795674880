// The openai and portkey-ai clients, unchanged, through the gateway to one endpoint.
// Environment: LOOMGATE_URL (without /v1), LOOMGATE_KEY, UPSTREAM (an address for x-portkey-custom-host), PROVIDER_KEY.
// Prints a JSON line a client and exits with 1 if something was not as it should be.

import assert from "node:assert/strict";
import OpenAI, { toFile } from "openai";
import { Portkey } from "portkey-ai";

const { LOOMGATE_URL, LOOMGATE_KEY, UPSTREAM, PROVIDER_KEY } = process.env;
const baseURL = `${LOOMGATE_URL}/v1`;
const clients = {
  openai: new OpenAI({
    baseURL,
    apiKey: PROVIDER_KEY,
    maxRetries: 0,
    defaultHeaders: {
      "x-portkey-api-key": LOOMGATE_KEY,
      "x-portkey-provider": "openai",
      "x-portkey-custom-host": UPSTREAM,
    },
  }),
  portkey: new Portkey({
    baseURL,
    apiKey: LOOMGATE_KEY,
    provider: "openai",
    customHost: UPSTREAM,
    Authorization: `Bearer ${PROVIDER_KEY}`,
  }),
};

for (const [client, sdk] of Object.entries(clients)) {
  const messages = [{ role: "user", content: "Hello" }];
  const answer = await sdk.chat.completions.create({ model: "m", messages });
  assert.equal(answer.choices[0].message.content, "Hi.");
  const vectors = await sdk.embeddings.create({ model: "m", input: "Hello" });
  assert.equal(vectors.data.length, 1);
  const models = await sdk.models.list();
  assert.deepEqual(models.data.map(({ id }) => id), ["m"]);
  const speech = await sdk.audio.speech.create({ model: "m", voice: "alloy", input: "x" });
  assert.deepEqual([...new Uint8Array(await speech.arrayBuffer())], [0, 255, 1]);
  const file = await toFile(Buffer.from([0, 255, 1]), "a.mp3");
  assert.equal((await sdk.audio.transcriptions.create({ model: "m", file })).text, "Hello");
  const events = [];
  for await (const event of await sdk.responses.create({ model: "m", input: "x", stream: true })) events.push(event.type);
  assert.deepEqual(events, ["response.output_text.delta"]);
  await assert.rejects(sdk.completions.create({ model: "m", prompt: "x" }), (error) => {
    assert.equal(error.status, 400);
    assert.match(error.message, /openai error: No\./);
    return true;
  });
  console.log(JSON.stringify({ client }));
}
