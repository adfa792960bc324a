"""The engine's side of the wire, in this process: maps between steps, and a device that is lost."""

from __future__ import annotations

import base64
import io
import socket
from collections.abc import Generator, Iterator
from threading import Thread

import pyarrow.parquet
import pytest

from depthdial.engine.device import DeviceLost
from depthdial.engine.llm import LLM, SamplingParams
from depthdial.maps.record import Recorder
from depthdial.methods import SkipLayer
from depthdial.models.scratch import Spec, fresh
from depthdial.serve.facts import facts_of
from depthdial.serve.in_turns import Pause, in_turns
from depthdial.serve.map_export import export_map, map_order
from depthdial.serve.map_queue import MapQueue
from depthdial.serve.wire import Message, Wire
from depthdial.serve.worker import Worker

PARAMS = {"max_tokens": 12, "temperature": 0.0, "top_p": 1.0, "top_k": 0, "seed": 0, "stop": None, "ignore_eos": True}
PARAMS |= {"n": 1, "logprobs": None, "budget": None, "prompt_budget": None, "lossless": False}


@pytest.fixture
def llm(tiny_folder, tiny_plugin) -> LLM:
    return LLM(str(tiny_folder), str(tiny_plugin), dtype="float32", device="cpu")


@pytest.fixture
def wires() -> Iterator[tuple[Wire, Wire]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Wire(ours), Wire(theirs)


def taken(worker: Worker, order: Message) -> None:
    assert worker.prepare(order)
    worker.take(order)


def text(id: int) -> Message:
    return {"op": "generate", "id": id, "prompts": ["the quick"], "params": PARAMS, "most": 16, "detailed": False}


def map_of(id: int) -> Message:
    messages = [{"role": "user", "content": "the fox jumps"}]
    budgets = {"budget": None, "prompt_budget": None}
    return {"op": "map", "id": id, "messages": messages, "format": "parquet", "title": None, **budgets}


def test_a_text_does_not_wait_for_all_maps(llm):
    """Ten maps before it, of a stage for each layer; a stage and a step take turns, where no time passes."""
    ours, theirs = socket.socketpair()
    front, error_text = Wire(ours), []
    hearing = Thread(target=lambda: error_text.extend(iter(front.receive, None)))
    hearing.start()
    worker = Worker(llm, Wire(theirs), "tiny", None, clock=lambda: 0.0)
    for order in (*map(map_of, range(1, 11)), text(11)):
        taken(worker, order)
    for _ in range(400):  # more than there are layers and files of ten maps
        worker.turn()
    theirs.shutdown(socket.SHUT_WR)
    hearing.join(60)
    end = [message.get("map", "text") for message in error_text if "map" in message or "ended" in message]
    assert sorted(map(str, end)) == sorted(map(str, [*range(1, 11), "text"]))
    assert end[0] == "text"  # its dozen steps come between the layers of the first map


def stages(log: list[str], name: str, count: int, fails: bool = False) -> Generator[None, None, str]:
    for _ in range(count):
        log.append(name)
        yield
    if fails:
        raise ValueError(name)
    return name


def test_maps_get_half_of_the_time_and_all_of_it_when_idle():
    now = [0.0]
    queue = MapQueue(lambda: now[0])

    def slow() -> Generator[None, None, str]:
        for _ in range(2):
            now[0] += 5.0
            yield
        return "done"

    queue.add(1, slow())
    assert queue.due(idle=False) and queue.run() is None
    assert not queue.due(idle=False) and queue.due(idle=True)
    now[0] += 4.9
    assert not queue.due(idle=False)
    now[0] += 0.1
    assert queue.due(idle=False) and queue.run() is None
    assert queue.run() == (1, "done") and not queue.due(idle=True)


def test_a_map_that_is_cancelled_does_not_run_and_one_that_fails_stops_no_other():
    log: list[str] = []
    queue = MapQueue(lambda: 0.0)
    for id, name in enumerate("abcd"):
        queue.add(id, stages(log, name, 2, fails=name == "c"))
    assert queue.run() is None
    for id in (0, 1, 9):  # one that was begun, one that was not, one that is not there
        queue.cancel(id)
    end = [result for _ in range(6) if (result := queue.run()) is not None]
    assert log == ["a", "c", "c", "d", "d"] and len(queue) == 0
    (first, error), last = end
    assert first == 2 and isinstance(error, ValueError) and last == (3, "d")


@pytest.mark.parametrize("stays", [True, False])
def test_a_device_error_that_stays_ends_the_process_and_another_does_not(llm, wires, monkeypatch, stays):
    front, back = wires

    def fail(*_) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    worker = Worker(llm, back, "tiny", None)
    monkeypatch.setattr("depthdial.engine.step.alive", lambda _: not stays)
    real = llm.engine.runner.run
    monkeypatch.setattr(llm.engine.runner, "run", fail)
    taken(worker, text(1))
    if stays:
        with pytest.raises(DeviceLost, match="device-side assert"):
            worker.turn()
    else:
        worker.turn()
    messages = [front.receive(), front.receive()]
    assert messages[0] is not None and messages[0]["accepted"] == 1
    assert messages[1] is not None and messages[1]["tokens"][0][-1] == "error"
    if not stays:
        monkeypatch.setattr(llm.engine.runner, "run", real)
        taken(worker, text(2))
        worker.turn()
        assert (front.receive(), front.receive()) and worker._jobs[2].rows[0].finish_reason is None


def test_a_map_in_turns_is_the_map_and_leaves_nothing_behind(llm):
    order = map_order(llm, False, None, {**map_of(1), "messages": [{"role": "user", "content": "the fox " * 20}]})
    recorder = Recorder(llm.model, llm.tokenizer, llm.dials(llm.budget), scores=True, alternatives=3)
    (expected,) = recorder.rows([order.text])

    def hooks() -> int:
        return sum(len(module._forward_pre_hooks) for module in llm.model.modules())

    before = hooks()
    pauses, output = 0, export_map(llm, "tiny", order)
    while True:
        try:
            next(output)
            pauses += 1
            # somebody else's turn
            llm.generate("the quick", SamplingParams(max_tokens=1))
        except StopIteration as done:
            table = pyarrow.parquet.read_table(io.BytesIO(base64.b64decode(done.value)))
            break
    assert pauses >= 2 * llm.layers - llm.always_on + 2  # both passes, the head, and the file
    assert table.column("layers_used").to_pylist() == [expected.layers_used.tolist()]
    start = export_map(llm, "tiny", order)
    for _ in range(5):
        next(start)
    assert hooks() > before
    start.close()
    assert hooks() == before
    (again,) = recorder.rows([order.text])
    assert again.layers_used.tolist() == expected.layers_used.tolist()


def test_work_in_turns_raises_what_it_raises_and_ends_where_it_is_closed():
    calls: list[str] = []

    def work(pause: Pause) -> str:
        try:
            for name in "ab":
                calls.append(name)
                pause()
        finally:
            calls.append("end")
        raise ValueError("wrong")

    turns = in_turns(work)
    assert next(turns) is None and calls == ["a"]
    turns.close()
    assert calls == ["a", "end"]
    in_turns(work).close()  # never begun
    with pytest.raises(ValueError, match="wrong"):
        list(in_turns(work))
    assert calls == ["a", "end", "a", "b", "end"]


def test_a_model_of_its_own_runs_as_it_was_trained(tiny_tokenizer):
    """Routed, with no curve and no base: nobody who names no budget gets all its layers."""
    method = SkipLayer(density=0.3)
    llm = LLM.of(fresh(Spec.parse("4x2@32,kv=1,vocab=300,context=64"), method, seed=0).eval(), tiny_tokenizer)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        front, worker = Wire(ours), Worker(llm, Wire(theirs), "own", None)
        facts = facts_of(llm)
        assert (facts["floor"], facts["budget"], facts["own"]) == (None, None, True) and facts["always_on"] < 4
        assert (facts["prompt_floor"], facts["prompt_budget"]) == (None, "same")
        worker.take({**text(3), "ids": [[3, 4]], "params": {**PARAMS, "prompt_budget": 1.0}})
        errors = front.receive()
        assert errors is not None and errors["param"] == "prompt_budget" and '"same"' in errors["why"]
        for id, budget in ((1, None), (2, 1.0)):
            taken(worker, {**text(id), "params": {**PARAMS, "budget": budget}})
            depths: list[int] = []
            while True:
                worker.turn()
                message = front.receive()
                assert message is not None
                depths += [token[2] for news in message.get("tokens", ()) for token in news[2]]
                if "ended" in message:
                    break
            assert (min(depths) < 4) == (budget is None)
