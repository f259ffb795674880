// The official Node SDK, unchanged, against a running server: scenarios E2E-01, E2E-02 and E2E-03 of BEHAVIOUR.md, and SSE-53.
// Environment: LOOMGATE_URL (without /v1) and OPENAI_API_KEY. The server must have the model "scripted".
// Prints one JSON line a scenario, {scenario, ok, details}, and exits with 1 if one failed. What a scenario saw on its
// streams is in details as [event name, data as JSON text] pairs, for whoever started this to check further.

import assert from "node:assert/strict";
import OpenAI from "openai";

const base = process.env.LOOMGATE_URL;
if (!base || !process.env.OPENAI_API_KEY) {
  console.error("set LOOMGATE_URL and OPENAI_API_KEY");
  process.exit(2);
}
// No retries: a 409 or 5xx that goes away on the second try is a fault as well (BEHAVIOUR ERR-04).
const client = new OpenAI({ baseURL: `${base}/v1`, maxRetries: 0, timeout: 20_000 });
const { assistants, threads } = client.beta;
const quickly = { pollIntervalMs: 50 };

const WEATHER = { type: "function", function: { name: "get_weather", parameters: { type: "object", properties: { city: { type: "string" } } } } };
const CLOCK = { type: "function", function: { name: "get_time", parameters: { type: "object", properties: { zone: { type: "string" } } } } };

async function all(page) {
  const found = [];
  for await (const item of page) found.push(item);
  return found;
}

// A 400 of the kind and with the words expected; gives its message.
async function refused(call, part) {
  const error = await call.then(() => assert.fail(`not refused, expected: ${part}`), (reason) => reason);
  assert.ok(error instanceof OpenAI.BadRequestError, `${error?.name}: ${error?.message}`);
  assert.equal(error.type, "invalid_request_error");
  assert.ok(error.message.includes(part), `${error.message} lacks: ${part}`);
  assert.match(error.requestID ?? "", /^req_[0-9a-f]{32}$/);
  return error.message;
}

async function threadWith(text, tools = []) {
  const assistant = await assistants.create({ model: "scripted", name: "Scenario", instructions: "Follow the script.", tools });
  const thread = await threads.create();
  const message = await threads.messages.create(thread.id, { role: "user", content: text });
  return { assistant, thread, message };
}

// Reads a stream through the SDK's own event iterator, keeping names and data.
async function read(stream, events) {
  for await (const { event, data } of stream) events.push([event, JSON.stringify(data)]);
  return stream;
}

const text = (message) => message.content.map((part) => part.text.value).join("");

const scenarios = {
  // Create, run, poll, list messages by run, list steps, modify the run, list runs.
  async "E2E-01"(details) {
    const { assistant, thread, message } = await threadWith("/say Hello from the script.");
    details.ids = { assistant: assistant.id, thread: thread.id };
    assert.equal(message.content[0].text.value, "/say Hello from the script.");
    const run = await threads.runs.createAndPoll(thread.id, { assistant_id: assistant.id }, quickly);
    details.run = run;
    assert.equal(run.status, "completed", JSON.stringify(run.last_error));
    const answers = await all(await threads.messages.list(thread.id, { run_id: run.id }));
    assert.deepEqual(answers.map(text), ["Hello from the script."]);
    assert.equal(answers[0].role, "assistant");
    assert.equal(answers[0].run_id, run.id);
    const everything = await all(await threads.messages.list(thread.id, { order: "asc", limit: 1 }));
    assert.deepEqual(everything.map(({ id }) => id), [message.id, answers[0].id]);
    const steps = await all(await threads.runs.steps.list(run.id, { thread_id: thread.id }));
    assert.deepEqual(steps.map(({ type, status }) => [type, status]), [["message_creation", "completed"]]);
    assert.equal(steps[0].step_details.message_creation.message_id, answers[0].id);
    for (const kind of ["prompt_tokens", "completion_tokens", "total_tokens"]) assert.equal(run.usage[kind], steps[0].usage[kind]);
    const modified = await threads.runs.update(run.id, { thread_id: thread.id, metadata: { reviewed: "yes" } });
    assert.deepEqual(modified, { ...run, metadata: { reviewed: "yes" } });
    const runs = await all(await threads.runs.list(thread.id));
    assert.deepEqual(runs, [modified]);
  },

  // The same as a stream, with the SDK's own accumulation.
  async "E2E-02"(details) {
    const { assistant, thread } = await threadWith("/say One two three four five, streamed.");
    const events = (details.events = []);
    const stream = await read(threads.runs.stream(thread.id, { assistant_id: assistant.id }), events);
    const run = await stream.finalRun();
    const [message] = await stream.finalMessages();
    const [step] = await stream.finalRunSteps();
    assert.equal(run.status, "completed");
    assert.equal(text(message), "One two three four five, streamed.");
    const last = (name) => JSON.parse(events.findLast(([event]) => event === name)[1]);
    assert.deepEqual(await threads.runs.retrieve(run.id, { thread_id: thread.id }), last("thread.run.completed"));
    assert.deepEqual(await threads.messages.retrieve(message.id, { thread_id: thread.id }), last("thread.message.completed"));
    const stored = await threads.runs.steps.retrieve(step.id, { thread_id: thread.id, run_id: run.id });
    // A step's expires_at is the run's in the stream and null afterwards (BEHAVIOUR STEP-18).
    const { expires_at: ends, ...streamed } = last("thread.run.step.completed");
    const { expires_at: ended, ...kept } = stored;
    assert.deepEqual(kept, streamed);
    details.step_expires_at = [ends ?? null, ended ?? null];
  },

  // Two functions in one turn: partial submit refused, full submit, double submit refused, completion.
  async "E2E-03"(details) {
    const script = '/call get_weather {"city":"Oslo"}\n/call get_time {"zone":"CET"}\n/turn\n/say Cold and late.';
    const { assistant, thread } = await threadWith(script, [WEATHER, CLOCK]);
    const run = await threads.runs.createAndPoll(thread.id, { assistant_id: assistant.id }, quickly);
    assert.equal(run.status, "requires_action", JSON.stringify(run.last_error));
    assert.equal(run.required_action.type, "submit_tool_outputs");
    const calls = run.required_action.submit_tool_outputs.tool_calls;
    assert.deepEqual(calls.map((call) => call.function.name), ["get_weather", "get_time"]);
    assert.deepEqual(calls.map((call) => JSON.parse(call.function.arguments)), [{ city: "Oslo" }, { zone: "CET" }]);
    const outputs = calls.map((call, n) => ({ tool_call_id: call.id, output: ["3 degrees", "23:00"][n] }));
    const here = { thread_id: thread.id };
    details.partial = await refused(
      threads.runs.submitToolOutputs(run.id, { ...here, tool_outputs: [outputs[0]] }),
      `Expected tool outputs for call_ids ['${calls[0].id}', '${calls[1].id}'], got ['${calls[0].id}']`,
    );
    assert.equal((await threads.runs.retrieve(run.id, here)).status, "requires_action");
    const submitted = await threads.runs.submitToolOutputs(run.id, { ...here, tool_outputs: outputs });
    assert.equal(submitted.status, "queued");
    assert.equal(submitted.required_action, null);
    details.double = await refused(threads.runs.submitToolOutputs(run.id, { ...here, tool_outputs: outputs }), "do not accept tool outputs.");
    const done = await threads.runs.poll(run.id, here, quickly);
    details.run = done;
    assert.equal(done.status, "completed", JSON.stringify(done.last_error));
    const steps = await all(await threads.runs.steps.list(run.id, { ...here, order: "asc" }));
    assert.deepEqual(steps.map(({ type, status }) => [type, status]), [["tool_calls", "completed"], ["message_creation", "completed"]]);
    assert.deepEqual(steps[0].step_details.tool_calls.map((call) => call.function.output), ["3 degrees", "23:00"]);
    const [answer] = await all(await threads.messages.list(thread.id, { run_id: run.id }));
    assert.equal(text(answer), "Cold and late.");

    // The same conversation as two streams.
    const again = await threadWith(script, [WEATHER, CLOCK]);
    const first = await read(threads.runs.stream(again.thread.id, { assistant_id: again.assistant.id }), (details.events_1 = []));
    const waiting = await first.finalRun();
    assert.equal(waiting.status, "requires_action");
    const tool_outputs = waiting.required_action.submit_tool_outputs.tool_calls.map(({ id }) => ({ tool_call_id: id, output: "ok" }));
    const resumed = threads.runs.submitToolOutputsStream(waiting.id, { thread_id: again.thread.id, tool_outputs });
    const second = await read(resumed, (details.events_2 = []));
    assert.equal((await second.finalRun()).status, "completed");
    assert.deepEqual((await second.finalMessages()).map(text), ["Cold and late."]);
  },

  // A thread that is deleted under its stream: the SDK throws, it does not end quietly.
  async "SSE-53"(details) {
    const { assistant, thread } = await threadWith("/say Begun\n/wait 3600");
    const stream = threads.runs.stream(thread.id, { assistant_id: assistant.id });
    const error = await (async () => {
      for await (const { event } of stream) if (event === "thread.message.delta") await threads.delete(thread.id);
    })().then(() => assert.fail("the stream ended quietly"), (reason) => reason);
    assert.ok(error.message.includes(thread.id), error.stack);
    details.message = error.message;
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
