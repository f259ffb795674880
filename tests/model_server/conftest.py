"""A genuine model server of another project, and Loomgate before it: two real processes on 127.0.0.1.

What must live here: starting and stopping them. These tests run by ``make test-model-server`` alone, which compiles
the model server and names its interpreter in ``LOOMGATE_MODEL_SERVER``; without that they are not collected.
"""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import openai
import pytest

INTERPRETER = os.environ.get("LOOMGATE_MODEL_SERVER", "")
CONTEXT = (
    1024  # tokens that the model server keeps for prompt and answer together; a test's longest prompt is beyond it
)

collect_ignore_glob = [] if INTERPRETER else ["test_*.py"]


def free_port() -> int:
    """A port of 127.0.0.1 on which nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@contextmanager
def running(arguments: list[str], port: int, log: Path, environment: dict[str, str]) -> Iterator[None]:
    """A process that listens on ``port``; when it does not within a minute, the end of its output is the error."""
    with log.open("wb") as output:
        process = subprocess.Popen(arguments, stdout=output, stderr=subprocess.STDOUT, env=environment)
    try:
        pause = threading.Event()
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if process.poll() is not None:
                break
            pause.wait(0.1)
        else:
            pytest.fail(f"nothing listens on the port after a minute: {log.read_text()[-3000:]}")
        if process.poll() is not None:
            pytest.fail(f"the process ended with {process.returncode}: {log.read_text()[-3000:]}")
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def model_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of a model server with two models: ``loom``, and ``endless``, which never stops by itself."""
    folder = tmp_path_factory.mktemp("models")
    writer = Path(__file__).with_name("write_model.py")
    models: list[dict[str, object]] = []
    for name, options in (("loom", []), ("endless", ["--endless"])):
        path = folder / f"{name}.gguf"
        subprocess.run([INTERPRETER, str(writer), str(path), *options], check=True)
        models.append({"model": str(path), "model_alias": name, "n_ctx": CONTEXT, "n_threads": 1, "verbose": False})
    port = free_port()
    config = folder / "config.json"
    # The server's default ends an answer when another request comes in.
    settings = {"host": "127.0.0.1", "port": port, "interrupt_requests": False, "models": models}
    config.write_bytes(msgspec.json.encode(settings))
    arguments = [INTERPRETER, "-m", "llama_cpp.server", "--config_file", str(config)]
    with running(arguments, port, folder / "log", dict(os.environ)):
        yield f"http://127.0.0.1:{port}/v1"


@contextmanager
def loomgate(model_server: str, folder: Path) -> Iterator[openai.OpenAI]:
    """A Loomgate on a fresh data folder whose runs go to ``model_server``, and the official SDK pointed at it."""
    port = free_port()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LOOMGATE_", "OPENAI_"))}
    environment = kept | {"OPENAI_API_KEY": "sk-test", "OPENAI_BASE_URL": model_server}
    arguments = [sys.executable, "-m", "loomgate", "serve", "--host", "127.0.0.1", "--port", str(port)]
    arguments += ["--data", str(folder / "data")]
    with (
        running(arguments, port, folder / "log", environment),
        openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="sk-test", max_retries=0) as client,
    ):
        yield client


@pytest.fixture(scope="session")
def client(model_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    """The SDK, before a Loomgate whose model server works."""
    with loomgate(model_server, tmp_path_factory.mktemp("loomgate")) as made:
        yield made


@pytest.fixture
def stranded(tmp_path: Path) -> Iterator[openai.OpenAI]:
    """The SDK, before a Loomgate whose model server is down."""
    with loomgate(f"http://127.0.0.1:{free_port()}/v1", tmp_path) as made:
        yield made
