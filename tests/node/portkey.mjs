// The portkey-ai client, unchanged, against a running server: BEHAVIOUR E2E-10.
// Environment: LOOMGATE_URL (without /v1), LOOMGATE_KEY, and VIRTUAL_KEY for the model "gpt-4o-mini".
// Prints one JSON line and exits with 1 if something was not as it should be.

import assert from "node:assert/strict";
import { Portkey } from "portkey-ai";

const { LOOMGATE_URL, LOOMGATE_KEY, VIRTUAL_KEY } = process.env;
const client = new Portkey({ apiKey: LOOMGATE_KEY, virtualKey: VIRTUAL_KEY, baseURL: `${LOOMGATE_URL}/v1` });
const { assistants, threads } = client.beta;
const { runs } = threads;

const assistant = await assistants.create({ model: "gpt-4o-mini", instructions: "Follow the script." });
const thread = await threads.create({});
await threads.messages.create(thread.id, { role: "user", content: "/say Hello from a script." });
const here = { thread_id: thread.id };
const created = await runs.create(thread.id, { assistant_id: assistant.id });
assert.equal(created.status, "queued");
let run = await runs.retrieve(created.id, here);
for (let tries = 0; ["queued", "in_progress"].includes(run.status); tries += 1) {
  assert.ok(tries < 500, run.status);
  await new Promise((done) => setTimeout(done, 10));
  run = await runs.retrieve(created.id, here);
}
assert.equal(run.status, "completed", JSON.stringify(run.last_error));
const changed = await runs.update(run.id, { ...here, metadata: { checked: "yes" } });
assert.deepEqual(changed.metadata, { checked: "yes" });
const listed = await runs.list(thread.id, { limit: 5, order: "desc" });
assert.deepEqual(listed.data.map(({ id, metadata }) => [id, metadata]), [[run.id, { checked: "yes" }]]);
const messages = await threads.messages.list(thread.id, { run_id: run.id });
assert.deepEqual(messages.data.map((message) => message.content[0].text.value), ["Hello from a script."]);
console.log(JSON.stringify({ thread: thread.id, run: run.id, status: run.status }));
