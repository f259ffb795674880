"""Guardrails on the way of one request to one target: before the call, and on the answer, wherever it is from.

What must live here: what a verdict does to an answer (GATEWAY GR-08 to GR-16). What must not: how a verdict is found
(``guardrails``).
"""

from typing import Any

import msgspec

from loomgate.errors import ProviderError
from loomgate.gateway.call import Answer, Effective, Fields, Request
from loomgate.gateway.exchange import JSON, failed
from loomgate.gateway.gather import chunks_of, collect, gathered, led, overheard, pieces_of, whole_body
from loomgate.gateway.guardrails import Guards, denied_body, with_results
from loomgate.gateway.resolve import Resolved
from loomgate.gateway.subject import Subject
from loomgate.wire.chat import Chunk

_FAILED = 246
_DENIED = 446
_LONGEST = 4 * 1024 * 1024  # bytes of a stream that guardrails look at

_encode = msgspec.json.Encoder().encode


class Guard:
    """The guardrails of one target for one request. ``fields`` is the body after them."""

    def __init__(self, guards: Guards, request: Request, effective: Effective, resolved: Resolved | None) -> None:
        self._guards = guards
        self._request = request
        self._effective = effective
        self._provider = "scripted" if resolved is None else resolved.provider
        self._model = None if resolved is None else resolved.model
        self._before: list[Any] = []
        self._failed = False
        self.fields: Fields = {}

    async def admits(self, fields: Fields) -> Answer | None:
        """Look at the request: the answer that denies it (GR-10), or None; `fields` then is what goes on."""
        self.fields = fields
        if not self._effective.before or not self._request.endpoint.guarded:
            return None
        outcome = await self._guards.run(self._effective.before, self._subject("input", None))
        self._before, self._failed, self.fields = outcome.results, outcome.failed, outcome.fields
        if not outcome.denied:
            return None
        return self._denial(self._before, [])

    async def checked(self, answer: Answer) -> Answer:
        """Look at an endpoint's answer (GR-08, GR-11 to GR-16)."""
        request, effective = self._request, self._effective
        if answer.status != 200 or not request.endpoint.guarded:
            return answer
        after = effective.after if request.endpoint.answers else ()
        if answer.body is not None:
            return await self._checked_whole(answer, after)
        if self._failed:
            answer.status = _FAILED
        waits = [guardrail for guardrail in after if guardrail.deny and not guardrail.background]
        if waits:
            answer = await self._held_back(answer, after)
        elif after:
            answer = overheard(answer, _LONGEST, lambda pieces, chunks: self._afterwards(answer, pieces, chunks))
        if self._before and answer.stream is not None and self._loose:
            answer.stream = led(self._event({"before_request_hooks": self._before}), answer.stream)
        return answer

    # --- pieces ---

    @property
    def _loose(self) -> bool:
        """GR-15: a strict client gets no events of ours."""
        return not self._request.naming.strict or self._effective.strict is False

    def _subject(self, side: Any, answer: Fields | None) -> Subject:
        request = self._request
        return Subject(
            side=side,
            endpoint_name=request.endpoint.name,
            fields=self.fields,
            answer=answer,
            metadata=request.naming.metadata,
            provider=self._provider,
            model=self._model,
            headers=request.headers,
        )

    def _denial(self, before: list[Any], after: list[Any]) -> Answer:
        answer = Answer(_DENIED, denied_body(before, after), headers=[JSON])
        answer.provider, answer.model = self._provider, self._model or ""
        answer.error = ProviderError("invalid", "The guardrail checks defined in the config failed.", status=_DENIED)
        return answer

    async def _checked_whole(self, answer: Answer, after: tuple[Any, ...]) -> Answer:
        body = whole_body(answer)
        if body is None:
            return answer
        results: list[Any] = []
        if after:
            outcome = await self._guards.run(after, self._subject("output", body))
            if outcome.denied:
                return self._denial(self._before, outcome.results)
            results, body = outcome.results, outcome.answer or body
            self._failed = self._failed or outcome.failed
            if outcome.changed:
                answer.body = _encode(body)
        if self._failed:
            answer.status = _FAILED
        if self._before or results:
            answer.body = _encode(with_results(body, self._before, results))
        return answer

    async def _held_back(self, answer: Answer, after: tuple[Any, ...]) -> Answer:
        """A stream that may be denied is not begun before the verdict (which the reference does not do: GR-16)."""
        try:
            pieces, chunks = await collect(answer)
        except ProviderError as error:
            # Nothing has gone out yet: it is a failure like any other, so that it may be tried again, or elsewhere.
            broken = failed(self._request, answer.provider, error)
            broken.provider, broken.model = answer.provider, answer.model
            return broken
        found = gathered(self._request, answer, pieces, chunks)
        if found is not None:
            outcome = await self._guards.run(after, self._subject("output", found))
            if outcome.denied:
                return self._denial(self._before, outcome.results)
            if outcome.failed:
                answer.status = _FAILED
            if outcome.results and self._loose:
                pieces.append(self._event({"after_request_hooks": outcome.results}))
        if answer.stream is not None:
            answer.stream = pieces_of(pieces)
        else:
            answer.chunks = chunks_of(chunks)
        return answer

    async def _afterwards(self, answer: Answer, pieces: list[bytes], chunks: list[Chunk]) -> bytes | None:
        """The verdict on a stream that has gone out already: told at its end to those who read it (GR-16)."""
        found = gathered(self._request, answer, pieces, chunks)
        if found is None:
            return None
        outcome = await self._guards.run(self._effective.after, self._subject("output", found))
        if not outcome.results or not self._loose:
            return None
        return self._event({"after_request_hooks": outcome.results})

    def _event(self, results: Fields) -> bytes:
        name = b"event: hook_results\n" if self._request.endpoint.name == "messages" else b""
        return name + b"data: " + _encode({"hook_results": results}) + b"\n\n"
