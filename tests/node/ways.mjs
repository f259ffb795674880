// The JavaScript clients of OpenAI, Portkey and Anthropic, unchanged, on the gateway.
// Environment: LOOMGATE_URL (without /v1), LOOMGATE_KEY and ADMIN_KEY of a workspace, VIRTUAL_KEY that it has, and
// UPSTREAM, a stand-in that takes PROVIDER_KEY: answers are below /v1, streams below /streamed, errors below /refused.
// Prints one JSON line a scenario, {scenario, ok, details}, and exits with 1 if one failed.

import assert from "node:assert/strict";
import Anthropic from "@anthropic-ai/sdk";
import OpenAI, { toFile } from "openai";
import { Portkey, createHeaders } from "portkey-ai";

const { LOOMGATE_URL, LOOMGATE_KEY, ADMIN_KEY, VIRTUAL_KEY, UPSTREAM, PROVIDER_KEY } = process.env;
const baseURL = `${LOOMGATE_URL}/v1`;
const messages = [{ role: "user", content: "Hi" }];
const chat = { model: "gpt-4o", messages };

// The reason for which a call is refused.
const refused = (call) => Promise.resolve(call).then(() => assert.fail("not refused"), (reason) => reason);

async function spoken(stream) {
  let text = "";
  for await (const chunk of stream) text += chunk.choices[0]?.delta?.content ?? "";
  return text;
}

// Calls that both of OpenAI's and Portkey's clients have.
async function others(client) {
  const speech = await client.audio.speech.create({ model: "tts-1", voice: "alloy", input: "Hello" });
  assert.deepEqual([...new Uint8Array(await speech.arrayBuffer())], [0, 255]);
  const file = await toFile(Buffer.from([0, 255, 1]), "a.mp3");
  assert.equal((await client.audio.transcriptions.create({ model: "whisper-1", file })).text, "Hello.");
  assert.deepEqual((await client.models.list()).data.map(({ id }) => id), ["gpt-4o"]);
  const events = [];
  for await (const event of await client.responses.create({ model: "m", input: "x", stream: true })) events.push(event.type);
  assert.deepEqual(events, ["response.output_text.delta"]);
}

const scenarios = {
  async "openai"() {
    const made = (path) => new OpenAI({
      baseURL,
      apiKey: PROVIDER_KEY,
      maxRetries: 0,
      defaultHeaders: createHeaders({ apiKey: LOOMGATE_KEY, provider: "openai", customHost: `${UPSTREAM}/${path}`, traceID: "trace-js" }),
    });
    const client = made("v1");
    const { data, response } = await client.chat.completions.create(chat).withResponse();
    assert.equal(data.choices[0].message.content, "Hi.");
    assert.equal(response.headers.get("x-portkey-trace-id"), "trace-js");
    assert.equal(response.headers.get("x-portkey-provider"), "openai");
    assert.equal(await spoken(await made("streamed").chat.completions.create({ ...chat, stream: true })), "One two.");
    assert.equal(await made("streamed").chat.completions.stream(chat).finalContent(), "One two.");
    const embedded = await client.embeddings.create({ model: "m", input: "a" });
    assert.deepEqual(Array.from(embedded.data[0].embedding), [1]);
    const file = (name, type) => toFile(Buffer.from([0, 255, 13, 10]), name, { type });
    const edited = await client.images.edit({ model: "m", prompt: "red", image: await file("dot.png", "image/png") });
    assert.equal(edited.data[0].b64_json, "AP8=");
    await others(client);
    const error = await refused(made("refused").chat.completions.create(chat));
    assert.ok(error instanceof OpenAI.BadRequestError, error?.stack);
    assert.deepEqual([error.error.message, error.type, error.param, error.code], ["openai error: Bad value.", "invalid_request_error", "n", "bad"]);
  },

  async "portkey"() {
    const made = (options) => new Portkey({ baseURL, apiKey: LOOMGATE_KEY, ...options });
    const admin = made({ apiKey: ADMIN_KEY });
    const saved = await admin.configs.create({ name: "saved", config: { virtual_key: VIRTUAL_KEY } });
    const own = { provider: "openai", customHost: `${UPSTREAM}/v1`, Authorization: `Bearer ${PROVIDER_KEY}` };
    const inline = { provider: "openai", custom_host: `${UPSTREAM}/v1`, api_key: PROVIDER_KEY, cache: { mode: "simple" } };
    const ways = [
      [{ virtualKey: VIRTUAL_KEY }, chat],
      [{ provider: `@${VIRTUAL_KEY}` }, chat],
      [{}, { ...chat, model: `@${VIRTUAL_KEY}/gpt-4o` }],
      [{ config: saved.slug }, chat],
      [{ config: inline, metadata: { _user: "ann" } }, chat],
      [{ ...own, traceID: "trace-js" }, chat],
    ];
    for (const [options, body] of ways) {
      const found = await made(options).chat.completions.create(body);
      assert.equal(found.choices[0].message.content, "Hi.", JSON.stringify(options));
      const told = found.getHeaders();
      assert.equal(told.provider, "openai");
      if (options.traceID) assert.equal(told["trace-id"], "trace-js");
    }
    const cached = { config: inline, metadata: { _user: "ann" } };
    const status = async (options) => (await made(options).chat.completions.create(chat)).getHeaders()["cache-status"];
    assert.deepEqual([await status(cached), await status({ ...cached, cacheForceRefresh: true })], ["HIT", "REFRESH"]);
    const streamed = made({ ...own, customHost: `${UPSTREAM}/streamed` });
    assert.equal(await spoken(await streamed.chat.completions.create({ ...chat, stream: true })), "One two.");
    const embedded = await made({ virtualKey: VIRTUAL_KEY }).embeddings.create({ model: "m", input: "a" });
    assert.equal(embedded.data.length, 1);
    await others(made(own));
    const error = await refused(made({ ...own, customHost: `${UPSTREAM}/refused` }).chat.completions.create(chat));
    assert.equal(error.status, 400);
    assert.ok(error.message.includes("Bad value."), error.message);
    const keys = await admin.virtualKeys.list();
    assert.deepEqual(keys.data.map(({ slug }) => slug), [VIRTUAL_KEY]);
    await admin.configs.delete({ slug: saved.slug });
    assert.equal((await admin.configs.list({})).total, 0);
  },

  async "anthropic"() {
    const made = (path) => new Anthropic({
      baseURL: LOOMGATE_URL,
      apiKey: PROVIDER_KEY,
      maxRetries: 0,
      defaultHeaders: createHeaders({ apiKey: LOOMGATE_KEY, provider: "anthropic", customHost: `${UPSTREAM}/${path}` }),
    });
    const body = { model: "claude-sonnet-4-6", max_tokens: 64, messages };
    const found = await made("v1").messages.create(body);
    assert.deepEqual([found.content[0].text, found.stop_reason, found.usage.input_tokens], ["Three four.", "end_turn", 9]);
    const final = await made("streamed/v1").messages.stream(body).finalMessage();
    assert.deepEqual([final.content[0].text, final.stop_reason], ["Three four.", "end_turn"]);
    assert.equal((await made("v1").messages.countTokens({ model: body.model, messages })).input_tokens, 7);
    const error = await refused(made("refused/v1").messages.create(body));
    assert.ok(error instanceof Anthropic.BadRequestError, error?.stack);
    assert.equal(error.error.error.type, "invalid_request_error");
    // The same call to a vendor that speaks otherwise, with this server's key as the only one.
    const stored = new Anthropic({ baseURL: LOOMGATE_URL, apiKey: LOOMGATE_KEY, maxRetries: 0 });
    const translated = await stored.messages.create({ ...body, model: `@${VIRTUAL_KEY}/gpt-4o` });
    assert.deepEqual([translated.content[0].text, translated.stop_reason], ["Hi.", "end_turn"]);
  },
};

let failed = 0;
for (const [scenario, play] of Object.entries(scenarios)) {
  const details = {};
  let ok = true;
  try {
    await play(details);
  } catch (error) {
    ok = false;
    failed += 1;
    details.error = error?.stack ?? String(error);
  }
  console.log(JSON.stringify({ scenario, ok, details }));
}
process.exitCode = failed ? 1 : 0;
