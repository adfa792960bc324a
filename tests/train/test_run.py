"""A whole run on a tiny model: from text files to a plug-in that loads, by every method; interrupted and resumed."""

from __future__ import annotations

import dataclasses
import json
import resource
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from depthdial.methods import METHODS
from depthdial.models import load
from depthdial.models.base import load_base
from depthdial.models.checkpoint import PARTS_FILE, parts_of, read
from depthdial.models.convert import base_weights
from depthdial.models.converted import converted_of
from depthdial.models.export import export
from depthdial.models.retrofit import retrofit
from depthdial.train import callbacks as loop
from depthdial.train import run
from depthdial.train.checkpoints import damage
from depthdial.train.config import TrainConfig
from depthdial.train.run import train

TRAINABLE = [name for name, method in METHODS.items() if name != "dense" and method.frozen]
VOCABULARY = 300
TOKENS = torch.arange(3, 60)[None]


@pytest.fixture(scope="module")
def config(tiny_folder, tmp_path_factory) -> TrainConfig:
    folder = tmp_path_factory.mktemp("data")
    rows = [{"question": f"What is {i} plus {i}?", "answer": f"{i} + {i} = {2 * i}"} for i in range(80)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return TrainConfig(
        model=str(tiny_folder), data=(str(folder),), output="", budget=0.9, highest=0.95, steps=6, fit_steps=3, batch=2,
        length=64, heldout_tokens=256, generated_tokens=64, save_every=3, dtype="float32", device="cpu",
    )  # fmt: skip


def parts(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in parts_of(model).items()}


@pytest.mark.parametrize("method", TRAINABLE)
def test_a_run_gives_a_plugin_that_loads_and_keeps_its_budget(config, method, tmp_path):
    example = METHODS[method]().program(30)
    # blocks of the method's own see nothing of a prompt that the base has read
    own = {"prompt_budget": "same"} if example.own or not all(step.base for step in example.steps) else {}
    folder = train(dataclasses.replace(config, method=method, output=str(tmp_path / method), **own))
    plugin = read(folder)
    assert set(plugin.curves) == {"text", "generated"} and plugin.recommended == 0.9
    assert (folder / "README.md").read_text().startswith("---\n")
    model, _ = load(config.model, str(folder), dtype="float32", device="cpu")
    with torch.no_grad():
        model(TOKENS)
    assert converted_of(model).route.cost() < 1.0
    assert all(torch.equal(t, t.bfloat16().float()) for t in parts(model).values()), "shipped as measured: in bf16"
    half, _ = load(config.model, str(folder), dtype="float16", device="cpu")
    with torch.no_grad():
        assert half(TOKENS).logits.isfinite().all() and converted_of(half).route.cost() < 1.0
    if not parts(model):
        assert plugin.training["steps"] == 0, "nothing was trained, and the dial is measured all the same"
        return
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 7)) and {"loss", "cost", "layers"} <= set(lines[0])


def test_routers_that_cannot_see_the_token_are_trained_and_give_steps(config, tmp_path):
    fields = {**METHODS["flexidepth"].budgeted, "fixed_input": True}
    folder = train(dataclasses.replace(config, fields=fields, output=str(tmp_path / "fixed")))
    plugin = read(folder)
    assert plugin.method.fixed_input and plugin.curves["text"].step > 0
    model, _ = load(config.model, str(folder), budget=0.9, dtype="float32", device="cpu")
    with torch.no_grad():
        model(TOKENS)
    cost = converted_of(model).route.token_cost()
    assert len(cost.unique()) == 1 and plugin.curves["text"].floor < cost[0, 0] <= 0.9 + 1e-6
    assert any(tensor.any() for name, tensor in parts(model).items() if name.endswith("adapter.down.weight"))


@pytest.mark.parametrize(("method", "fields"), [("random", {}), ("static", {}), ("static", {"order": [2, 3]})])
def test_a_method_without_anything_to_train_gets_its_curve(config, method, fields, tmp_path):
    bare = dataclasses.replace(
        config, method=method, fields={"adapter_ratio": 0, **fields}, output=str(tmp_path / method), budget=0.9
    )
    folder = train(bare)
    plugin = read(folder)
    assert set(plugin.curves) == {"text", "generated"} and plugin.recommended == 0.9
    assert not (folder / "metrics.jsonl").exists() and not list(folder.glob("checkpoint-*"))
    text = (folder / "README.md").read_text()
    assert "nothing was trained" in text and "None" not in text.split("## The dial")[0].split("## Training")[1]
    model, _ = load(config.model, str(folder), dtype="float32", device="cpu")
    with torch.no_grad():
        model(TOKENS)
    assert converted_of(model).route.cost() < 1.0
    assert read(train(dataclasses.replace(bare, heldout_tokens=128), resume=True)).curves


def test_a_card_claims_no_licence_and_tells_the_budgets_that_were_trained(config, tmp_path):
    """Base and data have licences of their own; what was left to the default is told as it was used."""
    for name, budget, says in (("held", 0.9, "budgets trained: 0.85 to 0.95"), ("own", None, "trained at no budget")):
        fields = {} if budget else {"alpha": 0.1}
        folder = train(dataclasses.replace(config, budget=budget, fields=fields, output=str(tmp_path / name)))
        text = (folder / "README.md").read_text()
        assert says in text and "None" not in text.split("## The dial")[0].split("## Training")[1]
        assert not [line for line in text.splitlines() if line.startswith("license")]
        assert "apache" not in text.lower() and str(tmp_path) not in text


def test_float16_is_refused_before_anything_is_read(config):
    with pytest.raises(ValueError, match="training runs in bfloat16 or float32, not float16"):
        dataclasses.replace(config, dtype="float16", data=("nowhere",))


@pytest.mark.parametrize("objective", ["lm", "distill"])
def test_alpha_trains_without_a_budget(config, objective, tmp_path):
    facts = dataclasses.replace(
        config, budget=None, objective=objective, fields={"alpha": 0.1, "start": 0.5}, output=str(tmp_path / "alpha")
    )
    plugin = read(train(facts))
    assert plugin.recommended is not None and 0.5 < plugin.recommended <= 1.01


def tear(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop a run of 6 steps after the fourth, as a terminal does."""
    step_end = loop.Report.on_step_end

    def interrupt(self, args, state, control, **kwargs):
        step_end(self, args, state, control, **kwargs)
        if state.global_step == 4:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Report, "on_step_end", interrupt)
        with pytest.raises(loop.InterruptedRun, match=r"step 4 of 6.*--resume"):
            train(config)


def test_an_interrupted_run_resumes_to_the_same_plugin(config, tmp_path, monkeypatch):
    whole = train(dataclasses.replace(config, output=str(tmp_path / "whole")))
    torn = dataclasses.replace(config, output=str(tmp_path / "torn"))
    tear(torn, monkeypatch)
    assert not (tmp_path / "torn" / PARTS_FILE).exists()
    with pytest.raises(ValueError, match="add --resume"):
        train(torn)
    with pytest.raises(ValueError, match=r"other settings.*lr"):
        train(dataclasses.replace(torn, lr=0.5), resume=True)
    again = train(torn, resume=True)
    a, b = (load(config.model, str(f), dtype="float32", device="cpu")[0] for f in (whole, again))
    for (name, one), other in zip(parts(a).items(), parts(b).values(), strict=True):
        assert torch.equal(one, other), name


@pytest.fixture(scope="module")
def recursive(config, tiny_folder, tmp_path_factory) -> TrainConfig:
    """A run on a folder of `depthdial retrofit`."""
    base, tokenizer = load_base(str(tiny_folder), "float32", "cpu")
    folder = export(retrofit(base, 2, "average", 8).model, tokenizer, tmp_path_factory.mktemp("models") / "recursive")
    return dataclasses.replace(config, model=str(folder), method="recursive", objective="lm")


def test_changes_of_a_recursive_model_are_trained_alone_and_resumed(recursive, tmp_path, monkeypatch):
    whole, torn = (dataclasses.replace(recursive, output=str(tmp_path / name)) for name in ("whole", "torn"))
    tear(torn, monkeypatch)
    a, b = (
        load(torn.model, str(f), dtype="float32", device="cpu")[0] for f in (train(whole), train(torn, resume=True))
    )
    began, _ = load(torn.model, dtype="float32", device="cpu")
    assert all(torch.equal(one, other) for one, other in zip(parts(a).values(), parts(b).values(), strict=True))
    assert all(not torch.equal(one, other) for one, other in zip(parts(a).values(), parts(began).values(), strict=True))
    assert all(torch.equal(one, base_weights(began)[name]) for name, one in base_weights(a).items())
    curve = read(whole.output).curves["text"]
    assert curve.offsets == (-1, 0) and curve.costs[1] == 1.0 and curve.kls[1] == 0.0 and curve.step == 1.0
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["layers"] == pytest.approx(4.5), "all loop ends learn from each row"


def test_a_dial_with_stops_takes_the_lower_one(recursive, tmp_path):
    plugin = train(dataclasses.replace(recursive, output=str(tmp_path / "out"), generated_tokens=0))
    for budget, layers in ((1.0, 6), (0.99, 3), (0.7, 3)):
        model, _ = load(recursive.model, str(plugin), budget, dtype="float32", device="cpu")
        with torch.no_grad():
            model(TOKENS)
        assert converted_of(model).route.layers_used.unique().tolist() == [layers]
    folder = export(model, AutoTokenizer.from_pretrained(recursive.model), tmp_path / "exported")
    handle, _ = load(str(folder), budget=0.7, dtype="float32", device="cpu")
    with torch.no_grad():
        assert torch.equal(handle(TOKENS).logits, model(TOKENS).logits), "the folder knows the curve"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"objective": "distill"}, "there is none to distil from; give --objective lm"),
        ({"method": "flexidepth"}, "give --method recursive, and none of its fields"),
        ({"fields": {"loops": 3}}, "give --method recursive, and none of its fields"),
    ],
)
def test_a_recursive_model_is_trained_as_what_it_is(recursive, change, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        train(dataclasses.replace(recursive, output=str(tmp_path / "out"), **change))
    assert not (tmp_path / "out").exists()


def test_a_plugin_of_another_base_is_refused_by_a_recursive_model(recursive, tiny_plugin):
    with pytest.raises(ValueError, match="takes no plug-in"):
        load(recursive.model, str(tiny_plugin), device="cpu")


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "rng_state.pth", "scheduler.pt"])
def test_a_run_goes_on_from_the_older_checkpoint_where_the_newest_is_damaged(config, name, tmp_path, caplog):
    facts = dataclasses.replace(config, output=str(tmp_path / "run"), generated_tokens=0)
    before = load_file(train(facts) / PARTS_FILE)
    file = tmp_path / "run" / "checkpoints" / "checkpoint-6" / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    after = load_file(train(facts, resume=True) / PARTS_FILE)
    assert f"checkpoint-6 is damaged ({name} has" in caplog.text
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())
    assert damage(file.parent) is None, "and is there again"


def test_a_full_disk_is_one_line_and_can_be_resumed(config, tmp_path, room):
    whole, torn = (dataclasses.replace(config, output=str(tmp_path / n), generated_tokens=0) for n in ("whole", "torn"))
    before = load_file(train(whole) / PARTS_FILE)
    with room(10_000), pytest.raises(OSError, match=r"free some space .* no checkpoint was written yet"):
        train(torn)
    step_end = loop.Report.on_step_end

    def fill(self, args, state, control, **kwargs):
        step_end(self, args, state, control, **kwargs)
        if state.global_step == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))

    with room(1_000_000), pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Report, "on_step_end", fill)
        with pytest.raises(OSError, match=r"--resume: checkpoint-3 is good") as caught:
            train(torn)
    assert "\n" not in str(caught.value)
    after = load_file(train(torn, resume=True) / PARTS_FILE)
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())


def test_a_run_whose_rows_changed_is_not_resumed(config, tmp_path):
    file = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"What is {i}?", "completion": f"It is {i}."} for i in range(80)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    facts = dataclasses.replace(config, data=(str(file),), output=str(tmp_path / "run"))
    train(facts)
    before = {path: path.read_bytes() for path in (tmp_path / "run").glob("*.json*")}
    for changed in (rows[:-1], rows[::-1], [*rows[:-1], {**rows[-1], "completion": "It is not."}]):
        file.write_text("".join(json.dumps(row) + "\n" for row in changed))
        with pytest.raises(ValueError, match=r"run was begun on other data: rows of .*rows\.jsonl changed"):
            train(facts, resume=True)
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").glob("*.json*")}
    file.write_text("".join(json.dumps({**row, "unused": 1}) + "\n" for row in rows))
    train(facts, resume=True)


def test_a_token_outside_the_embedding_is_named_before_training(config, tiny_folder, tmp_path):
    folder, file = tmp_path / "base", tmp_path / "rows.jsonl"
    shutil.copytree(tiny_folder, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"<more{i}>" for i in range(VOCABULARY)])
    tokenizer.save_pretrained(folder)
    file.write_text("".join(json.dumps({"text": f"A {'<more299>' if i == 60 else ''} {i}"}) + "\n" for i in range(80)))
    facts = dataclasses.replace(config, model=str(folder), data=(str(file),), output=str(tmp_path / "run"))
    message = (
        rf"rows\.jsonl line 61: the token '<more299>' has id \d+, but the model's embedding holds {VOCABULARY} tokens"
    )
    with pytest.raises(ValueError, match=message):
        train(facts)
    assert not (tmp_path / "run" / "train.json").exists()


def test_a_run_may_start_from_a_plugin(config, tmp_path):
    first = train(dataclasses.replace(config, output=str(tmp_path / "first")))
    facts = dataclasses.replace(config, start_from=str(first), output=str(tmp_path / "second"), steps=1, lr=1e-9)
    second = train(facts)
    assert f"from the plug-in {first.name}" in (second / "README.md").read_text()
    a, b = (load(config.model, str(f), dtype="float32", device="cpu")[0] for f in (first, second))
    after = parts(b)
    same = [torch.allclose(t, after[name], atol=1e-6) for name, t in parts(a).items() if "adapter" in name]
    assert all(same)
    with pytest.raises(ValueError, match=r"has no .*adapter.* of that shape .* cannot be the starting point"):
        train(dataclasses.replace(facts, fields={"adapter_ratio": 64}, output=str(tmp_path / "fourth")))
    reading = read(train(dataclasses.replace(facts, fields={"detach": True}, output=str(tmp_path / "fifth")))).method
    assert vars(reading)["detach"] is True


def test_a_baseline_may_start_from_the_adapters_of_a_plugin(config, tmp_path):
    first = train(dataclasses.replace(config, output=str(tmp_path / "first")))
    facts = dataclasses.replace(config, start_from=str(first), steps=1, lr=1e-9, method="random", fields={"rate": 0.5})
    second = train(dataclasses.replace(facts, output=str(tmp_path / "second")))
    a, b = (parts(load(config.model, str(f), dtype="float32", device="cpu")[0]) for f in (first, second))
    assert b and all("adapter" in name and torch.allclose(tensor, a[name], atol=1e-6) for name, tensor in b.items())
    back = dataclasses.replace(config, start_from=str(second), output=str(tmp_path / "third"))
    with pytest.raises(ValueError, match=r"has no .*router.* of that shape"):
        train(back)


def test_a_start_is_not_measured_again(config, tmp_path, monkeypatch):
    first = train(dataclasses.replace(config, output=str(tmp_path / "first")))
    facts = dataclasses.replace(config, start_from=str(first), output=str(tmp_path / "second"), steps=1)
    figures: list[int] = []
    curve_of = run.curve_of
    monkeypatch.setattr(run, "curve_of", lambda *args: figures.append(1) or curve_of(*args))
    train(facts)
    assert len(figures) == 1, "only the dial of the new plug-in"


def test_a_full_disk_leaves_no_half_checkpoint(config, tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    facts = dataclasses.replace(config, output=str(tmp_path / "full"))
    monkeypatch.setattr("transformers.trainer.Trainer._save_optimizer_and_scheduler", full)
    with pytest.raises(OSError, match="No space left"):
        train(facts)
    assert not list((tmp_path / "full" / "checkpoints").glob("checkpoint-*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": ()}, "no data files"),
        ({"budget": 1.5}, "budget 1.5 is out of range"),
        ({"budget": 0.2}, "floor on this model"),
        ({"method": "telepathy"}, "unknown method 'telepathy'"),
        ({"method": "skiplayer"}, "depthdial pretrain --method skiplayer"),
        ({"fields": {"depth": 3}}, "has no field depth"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"batch": 10_000}, "less than a batch"),
        ({"model": "/nowhere/at/all"}, "nowhere"),
        ({"device": "cuda:1"}, "set CUDA_VISIBLE_DEVICES=1"),
    ],
)
def test_bad_settings_say_what_to_do_and_leave_no_plugin(config, change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(dataclasses.replace(config, **{"output": str(tmp_path / "bad"), **change}))
    assert not (tmp_path / "bad" / PARTS_FILE).exists()
