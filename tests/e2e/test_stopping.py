"""An operator stops the server while somebody looks on: what the client, the log and the run say of it."""

from collections.abc import Callable

import openai
import pytest
from openai import OpenAI

from tests.support.eventually import eventually
from tests.support.server import ProcessServer


@pytest.mark.behaviour("SSE-52", "SSE-53", "RUN-99")
def test_stopped_in_the_middle_of_a_stream(process_server: Callable[..., ProcessServer]) -> None:
    server = process_server(LOOMGATE_DRAIN_SECONDS="0.2")
    told: list[str] = []
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as sdk:
        assistant = sdk.beta.assistants.create(model="scripted")
        thread = sdk.beta.threads.create(messages=[{"role": "user", "content": "/say Hello\n/wait 1.5\n/say again."}])

        def look_on() -> None:
            with sdk.beta.threads.runs.stream(thread_id=thread.id, assistant_id=assistant.id) as stream:
                for event in stream:
                    told.append(event.event)
                    if event.event == "thread.message.delta":
                        assert server.stop() == 0

        with pytest.raises(openai.APIError, match="The run"):
            look_on()
    assert "thread.run.failed" not in told
    log = (server.data.parent / "server.log").read_text()
    assert "stopping: 1 run(s) under way get 0.2 seconds" in log
    assert "Traceback" not in log
    server.start()
    client = server.client()
    run = client.get(f"/threads/{thread.id}/runs")["data"][0]
    path = f"/threads/{thread.id}/runs/{run['id']}"
    eventually(lambda: client.get(path)["status"] == "completed")
    (answer,) = client.get(f"/threads/{thread.id}/messages?run_id={run['id']}")["data"]
    assert answer["content"][0]["text"]["value"] == "Hello\nagain."
