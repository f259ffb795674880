"""The README's quickstart: streaming, then a function tool with polling, with the official OpenAI SDK."""

import json

from openai import OpenAI

client = OpenAI(base_url="http://127.0.0.1:8787/v1", api_key="not-needed-yet")

# 1. An assistant and a thread; the answer streams in.
assistant = client.beta.assistants.create(
    model="scripted",  # ships with Loomgate: no key, no network. Put your own model's name here later.
    instructions="You are a weather desk.",
    tools=[
        {
            "type": "function",
            "function": {
                "name": "get_weather",
                "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
            },
        }
    ],
)
thread = client.beta.threads.create(messages=[{"role": "user", "content": "Hello!"}])
with client.beta.threads.runs.stream(thread_id=thread.id, assistant_id=assistant.id) as stream:
    for text in stream.text_deltas:
        print(text, end="", flush=True)
print()

# 2. A question that needs the function. Slash lines tell the scripted model what to do; a real one decides itself.
client.beta.threads.messages.create(
    thread.id,
    role="user",
    content='What is the weather in Oslo?\n/call get_weather {"city": "Oslo"}\n/turn\n/say It is 4 °C in Oslo.',
)
run = client.beta.threads.runs.create_and_poll(thread_id=thread.id, assistant_id=assistant.id)
print(run.status)
calls = run.required_action.submit_tool_outputs.tool_calls
for call in calls:
    print("call:", call.function.name, call.function.arguments)
outputs = [{"tool_call_id": call.id, "output": json.dumps({"celsius": 4})} for call in calls]
run = client.beta.threads.runs.submit_tool_outputs_and_poll(run_id=run.id, thread_id=thread.id, tool_outputs=outputs)
print(run.status, run.usage.total_tokens)

# 3. What is stored: the newest message, and the runs of the thread.
newest = client.beta.threads.messages.list(thread.id, limit=1).data[0]
print(newest.role, newest.content[0].text.value)
for run in client.beta.threads.runs.list(thread.id):
    print(run.id, run.status)
