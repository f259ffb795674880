// The official Node SDK, unchanged, while the model's answer breaks off in the middle: its accumulated snapshots end as what is stored.
// Environment: LOOMGATE_URL (without /v1) and OPENAI_API_KEY. The server must have the model "scripted".
// Prints one JSON line a scenario, {scenario, ok, details}, and exits with 1 if one failed.

import assert from "node:assert/strict";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: `${process.env.LOOMGATE_URL}/v1`, maxRetries: 0, timeout: 20_000 });
const { assistants, threads } = client.beta;
const LOOK = { type: "function", function: { name: "look", parameters: { type: "object" } } };

async function asked(text, tools = []) {
  const assistant = await assistants.create({ model: "scripted", instructions: "Follow the script.", tools });
  const thread = await threads.create({ messages: [{ role: "user", content: text }] });
  return { thread, stream: threads.runs.stream(thread.id, { assistant_id: assistant.id }) };
}

const scenarios = {
  async "text"(details) {
    const { thread, stream } = await asked("/say One two three\n/error cut times=2\n/say four five.");
    const created = [];
    const done = [];
    let spoken = "";
    stream.on("messageCreated", (message) => { created.push(message.id); });
    stream.on("textDelta", (delta) => { spoken += delta.value ?? ""; });
    stream.on("messageDone", (message) => done.push(message));
    await stream.done();
    const [message, ...more] = await stream.finalMessages();
    assert.deepEqual(more, []);
    assert.equal(message.content[0].text.value, "One two three\nfour five.");
    assert.equal(spoken, message.content[0].text.value);
    assert.deepEqual(message, await threads.messages.retrieve(message.id, { thread_id: thread.id }));
    assert.deepEqual(created, [message.id]);
    assert.deepEqual(done, [message]);
    assert.equal((await stream.finalRun()).status, "completed");
    details.message = message;
  },

  async "calls"(details) {
    const { stream } = await asked('/call look {"at":"it"}\n/call look {"at":"that"}\n/error cut times=1', [LOOK]);
    await stream.done();
    const run = await stream.finalRun();
    assert.equal(run.status, "requires_action");
    const wanted = run.required_action.submit_tool_outputs.tool_calls;
    const [broken, step, ...more] = await stream.finalRunSteps();
    assert.deepEqual([broken.status, step.status, more], ["failed", "in_progress", []]);
    const shown = step.step_details.tool_calls.map((call) => [call.id, call.function.name, call.function.arguments]);
    assert.deepEqual(shown, wanted.map((call) => [call.id, call.function.name, call.function.arguments]));
    assert.deepEqual(shown.map(([, , given]) => given), ['{"at":"it"}', '{"at":"that"}']);
    details.step = step;
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
