"""Scripts for the scripted model, drawn at random, and what a run that plays one has to write."""

from dataclasses import dataclass, field

from hypothesis import strategies as st

_WORDS = st.lists(st.sampled_from(["oak", "fern", "moss", "reed", "ivy"]), min_size=1, max_size=3).map(" ".join)
_NAMES = st.sampled_from(["look", "count"])


@dataclass(frozen=True)
class Turn:
    say: str | None = None
    refuse: str | None = None
    calls: tuple[str, ...] = ()
    wait: float = 0.0
    fail: str | None = None  # what the turn fails with after what it said
    times: int | None = None  # how often it fails before it goes well
    cut: bool = False

    def lines(self) -> list[str]:
        lines: list[str] = []
        if self.fail is not None and self.times is not None:
            lines.append(f"/error {self.fail} times={self.times}")
        if self.say is not None:
            lines.append(f"/say {self.say}")
        if self.refuse is not None:
            lines.append(f"/refuse {self.refuse}")
        if self.wait:
            lines.append(f"/wait {self.wait}")
        lines += [f"/call {name} {{}}" for name in self.calls]
        if self.fail is not None and self.times is None:
            lines.append(f"/error {self.fail}")
        if self.cut:
            lines.append("/finish length")
        return lines or ["/wait 0"]


@dataclass(frozen=True)
class Script:
    turns: tuple[Turn, ...]
    parallel: bool = True

    @property
    def text(self) -> str:
        return "\n/turn\n".join("\n".join(turn.lines()) for turn in self.turns)

    def played(self) -> list[Turn]:
        """The turns as they are played: without parallel calls, every further call is a turn of its own."""
        if self.parallel:
            return list(self.turns)
        played: list[Turn] = []
        for turn in self.turns:
            first = turn.calls[:1]
            rest = turn.calls[1:]
            if not rest:
                played.append(turn)
                continue
            # Failing and cutting come after the calls, so they end up in the last of these turns.
            late = turn.fail if turn.times is None else None
            played.append(
                Turn(
                    turn.say,
                    turn.refuse,
                    first,
                    turn.wait,
                    None if late else turn.fail,
                    turn.times,
                )
            )
            played += [Turn(calls=(name,)) for name in rest[:-1]]
            played.append(Turn(calls=(rest[-1],), fail=late, cut=turn.cut))
        return played


@dataclass
class Expected:
    """What a run should have written when it ends by itself, given the outputs that it got."""

    texts: list[str] = field(default_factory=list)
    status: str = "completed"
    error: str | None = None


_ERRORS = {"quota": "rate_limit_exceeded", "invalid": "invalid_prompt", "cut": "server_error"}


def expected(script: Script, outputs: list[tuple[str, str]]) -> Expected | None:
    """How a run that plays ``script`` ends after ``outputs`` (name, output); ``None``: it waits for more of them."""
    answer = Expected()
    left = list(outputs)
    for turn in script.played():
        text = "".join(part for part in (turn.say, turn.refuse) if part)
        if turn.fail is not None and turn.times is None:
            if text:
                answer.texts.append(text)
            answer.status, answer.error = "failed", _ERRORS[turn.fail]
            return answer
        if text or not turn.calls:
            answer.texts.append(text)
        if turn.cut:
            answer.status = "incomplete"
            return answer
        if not turn.calls:
            return answer
        if len(left) < len(turn.calls):
            return None
        left = left[len(turn.calls) :]
    answer.texts.append("\n".join(f"{name} answered: {output}" for name, output in outputs))
    return answer


_CALLS = st.lists(_NAMES, min_size=1, max_size=2).map(tuple)
_WAIT = st.sampled_from([0.0, 0.0, 0.5, 2.0, 20.0])
_TRY_AGAIN = st.sampled_from([(None, None)] * 6 + [("server", 1), ("overloaded", 2)])
_FAIL = st.sampled_from([None] * 6 + ["quota", "invalid", "cut"])


@st.composite
def scripts(draw: st.DrawFn) -> Script:
    """Turns with calls, then a last one that speaks, refuses, fails, is cut, says nothing or calls again."""
    turns: list[Turn] = []
    for _ in range(draw(st.integers(0, 2))):
        again, times = draw(_TRY_AGAIN)
        turns.append(Turn(draw(st.none() | _WORDS), None, draw(_CALLS), draw(_WAIT), again, times))
    again, times = draw(_TRY_AGAIN)
    fail = None if again else draw(_FAIL)
    said = draw(st.none() | _WORDS)
    refused = draw(_WORDS) if said is None and draw(st.integers(0, 5)) == 0 else None
    turns.append(
        Turn(
            said,
            refused,
            draw(st.just(()) | _CALLS) if fail is None else (),
            draw(_WAIT),
            again or fail,
            times,
            fail is None and draw(st.integers(0, 7)) == 0,
        )
    )
    return Script(tuple(turns), draw(st.sampled_from([True, True, True, False])))
