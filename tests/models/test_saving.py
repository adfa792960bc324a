"""A converted model saved the Hugging Face way opens again as it was; copies of it are models of their own."""

from __future__ import annotations

import copy
import io
import json
import math
import multiprocessing
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.laws.cover import MIXTURES, product
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from depthdial.core.dial import Curve
from depthdial.methods import method_named
from depthdial.models import load
from depthdial.models.checkpoint import Plugin, attach
from depthdial.models.convert import convert, revert
from depthdial.models.dial import set_budget
from depthdial.models.fingerprint import fingerprint

IDS = torch.randint(3, 300, (2, 12), generator=torch.Generator().manual_seed(0))
CURVE = Curve((-2.0, 0.0, 2.0), (0.7, 0.8, 0.95), (0.5, 0.2, 0.05))
METHODS: dict[str, dict[str, Any]] = {
    "flexidepth": {"first": 2, "start": 0.0},
    "skiplayer": {},
    "mixture_of_depths": {},
    "static": {"order": (4, 2), "count": 1},
}


@pytest.fixture
def made(tiny_model: Callable) -> Callable[..., Any]:
    """`made(method, family)`: converted, every weight of a part drawn, with a curve."""

    def make(method: str = "flexidepth", family: str = "llama", **config: Any) -> Any:
        torch.manual_seed(3)
        model: Any = convert(tiny_model(family, **config), method_named(method, METHODS[method]))
        for unit in model.converted.routed.values():
            for weight in unit.parts.parameters():
                torch.nn.init.normal_(weight, std=0.3)
        curves = {"text": CURVE, "generated": CURVE}
        model.converted.plugin = Plugin("tiny", model.converted.method, fingerprint(model), curves, recommended=0.875)
        return model.eval()

    return make


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(IDS).logits


def opened(folder: Path) -> Any:
    pair: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    model, report = pair
    assert not any(report.values()), report
    return model


@product(list(METHODS))
def test_it_opens_again_with_the_same_logits(made: Callable, method: str, family: str, tmp_path: Path):
    model = made(method, family, tie_word_embeddings=family != "llama")
    names, config = list(model.state_dict()), model.config.to_dict()
    model.save_pretrained(tmp_path)
    again = opened(tmp_path)
    assert again.config.model_type == f"depthdial_{family}" and again.converted.method == model.converted.method
    assert again.config.architectures == [type(again).__name__], "vLLM looks there"
    torch.testing.assert_close(logits(again), logits(model), rtol=0, atol=1e-5 if family in MIXTURES else 0)
    assert torch.equal(again.route.keep(), model.route.keep()) and not model.route.keep().all()
    assert list(model.state_dict()) == names and model.config.to_dict() == config, "the model itself stays as it was"
    again.save_pretrained(tmp_path / "twice")
    twice = opened(tmp_path / "twice")
    torch.testing.assert_close(logits(twice), logits(model), rtol=0, atol=1e-5 if family in MIXTURES else 0)


@pytest.mark.parametrize("turn", [0.75, 0.9, 1.0, None])
def test_the_dial_stays_where_it_stands(made: Callable, turn: float | None, tmp_path: Path):
    model = made()
    set_budget(model, turn)
    model.save_pretrained(tmp_path)
    again = opened(tmp_path)
    assert again.converted.settings.offset == model.converted.settings.offset and again.config.offset is None
    assert torch.equal(logits(again), logits(model))
    set_budget(again, 0.72)
    again.save_pretrained(tmp_path / "turned")
    assert opened(tmp_path / "turned").converted.settings.offset == again.converted.settings.offset


@pytest.mark.parametrize("prompt", [1.0, 0.75, "same", None])
def test_so_does_the_one_of_prompts(made: Callable, prompt: Any, tiny_tokenizer: Any, tmp_path: Path):
    model = made()
    set_budget(model, 0.8, prompt=prompt)
    model.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    loaded: Any = load(str(tmp_path), dtype="float32", device="cpu")[0]
    expected = model.generate(IDS, max_new_tokens=20, do_sample=False, pad_token_id=0)
    for again in (opened(tmp_path), loaded):
        assert (
            again.converted.turned == model.converted.turned
            and again.converted.settings.read_offset == model.converted.settings.read_offset
        )
        assert torch.equal(again.generate(IDS, max_new_tokens=20, do_sample=False, pad_token_id=0), expected)
    other: Any = load(str(tmp_path), budget=0.8, dtype="float32", device="cpu", prompt_budget="same")[0]
    assert other.converted.turned.prompt_budget == "same" and other.converted.settings.read_offset is None
    model.converted.set(read_offset=0.25)
    with pytest.raises(ValueError, match="set prompt_budget"):
        model.save_pretrained(tmp_path / "between")


def test_a_folder_of_before_there_was_a_choice_reads_in_full(made: Callable, tmp_path: Path):
    model = made()
    set_budget(model, 0.8, prompt="same")
    model.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    told = json.loads(file.read_text())
    assert told.pop("prompt_budget") == "same"
    file.write_text(json.dumps(told))
    assert opened(tmp_path).converted.turned.prompt_budget == 1.0


@pytest.mark.parametrize("offset", [-0.37, 1.25, math.inf, torch.tensor(0.5)])
@pytest.mark.parametrize("known", [True, False], ids=["a plug-in", "no plug-in"])
def test_so_does_one_that_no_budget_names(
    made: Callable, offset: Any, known: bool, tiny_tokenizer: Any, tmp_path: Path
):
    model = made()
    if not known:
        model.converted.plugin = None
    model.converted.set(offset=offset)
    model.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    loaded: Any = load(str(tmp_path), dtype="float32", device="cpu")[0]
    for again in (opened(tmp_path), loaded):
        assert again.converted.settings.offset == float(offset) and torch.equal(logits(again), logits(model))


def test_what_no_folder_can_hold_is_refused(made: Callable, tmp_path: Path):
    model = made()
    model.converted.set(offset=torch.tensor([0.0, 1.0]))
    with pytest.raises(ValueError, match="an offset per row"):
        model.save_pretrained(tmp_path / "rows")
    assert not list(tmp_path.iterdir())


def test_a_reverted_model_saves_as_the_stock_one(made: Callable, tmp_path: Path):
    revert(made()).save_pretrained(tmp_path)
    assert type(opened(tmp_path)).__name__ == "LlamaForCausalLM"


def test_names_of_earlier_versions_open(made: Callable, tiny_model: Callable, tmp_path: Path):
    """They had a wrapper around each routed unit: layers.3.self_attn.unit.q_proj, and two where keys are left out."""
    for method, place, wrapped in [
        ("flexidepth", "self_attn.", ".unit"),
        ("flexidepth", "mlp.", ".unit"),
        ("mixture_of_depths", "", "unit.unit."),
    ]:
        model = made(method)
        folder = tmp_path / method / place
        model.save_pretrained(folder)

        def old(name: str, place: str = place, wrapped: str = wrapped, model: Any = model) -> str:
            layer = int(name.split(".")[2]) if ".layers." in name else -1
            if ".parts." in name or layer not in {unit.step.block for unit in model.converted.routed.values()}:
                return name
            start = f"model.layers.{layer}."
            rest = name.removeprefix(start)
            return f"{start}{wrapped}{rest}" if not place else name.replace(f".{place}", f".{place[:-1]}{wrapped}.")

        file = folder / "model.safetensors"
        state = {old(name): tensor for name, tensor in load_file(file).items()}
        assert any(".unit." in name for name in state)
        save_file(state, file, metadata={"format": "pt"})
        again = opened(folder)
        assert torch.equal(logits(again), logits(model))
        again.save_pretrained(tmp_path / "again")
        assert not any(".unit." in name for name in load_file(tmp_path / "again" / "model.safetensors"))
        fresh: Any = made(method)
        fresh.load_state_dict({**fresh.state_dict(), **state}, strict=False)
        assert torch.equal(logits(fresh), logits(model)), "and a state dict loads"


def test_a_trainers_checkpoints_open_and_resume(made: Callable, tmp_path: Path):
    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            ids = torch.arange(12) + 5 * index + 3
            return {"input_ids": ids, "labels": ids}

    def trainer(model: Any, resume: bool | str = False) -> Any:
        args = TrainingArguments(
            str(tmp_path), max_steps=4, per_device_train_batch_size=2, save_steps=2, report_to=[], use_cpu=True,
            learning_rate=1e-2, disable_tqdm=True, dataloader_pin_memory=False,
        )  # fmt: skip
        made = Trainer(model, args, train_dataset=Rows())
        made.train(resume_from_checkpoint=resume)
        return model

    model = trainer(made())
    config = json.loads((tmp_path / "checkpoint-4" / "config.json").read_text())
    assert config["model_type"] == "depthdial_llama"
    assert torch.equal(logits(opened(tmp_path / "checkpoint-4")), logits(model.eval()))
    resumed = trainer(made(), resume=str(tmp_path / "checkpoint-2"))
    assert torch.equal(logits(resumed.eval()), logits(model))


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": lambda model: torch.load(saved(model), weights_only=False),
}


def saved(model: Any) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return file


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_a_copy_is_a_model_of_its_own(made: Callable, how: str, method: str, family: str):
    model = made(method, family)
    model(IDS, labels=IDS).loss.backward()  # decisions with a graph, which no copy can take along
    cost = model.route.cost()
    other = COPIES[how](model)
    with pytest.raises(ValueError, match="no forward pass"):
        other.route.cost()
    expected = logits(model)
    assert torch.equal(logits(other), expected)
    assert model.route.cost() == pytest.approx(cost) and other.route.cost() == pytest.approx(cost)
    assert other.route.decisions.keys() == model.converted.routed.keys()
    other.converted.set(offset=1e9)
    assert not torch.equal(logits(other), expected) and torch.equal(logits(model), expected)
    names = list(revert(other).state_dict())
    assert not any("parts" in name for name in names) and torch.equal(logits(model), expected)
    assert list(revert(model).state_dict()) == names


def test_an_own_model_is_copied_too(made: Callable, tmp_path: Path):
    made().save_pretrained(tmp_path)
    model = opened(tmp_path)
    for how in COPIES.values():
        other = how(model)
        assert torch.equal(logits(other), logits(model)) and other.route is not model.route


def in_another_process(model: Any, answers: Any) -> None:
    answers.put(logits(model).numpy())


@pytest.mark.slow
def test_a_spawned_process_takes_it(made: Callable):
    model = made()
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=in_another_process, args=(model, answers))
    process.start()
    found = torch.from_numpy(answers.get(timeout=120))
    process.join()
    torch.testing.assert_close(found, logits(model))


def test_a_plugin_attached_to_a_copy_fits_the_original(made: Callable, tiny_model: Callable, tiny_plugin: Path):
    base = tiny_model("llama")
    other = attach(copy.deepcopy(base), tiny_plugin)
    assert fingerprint(other) == fingerprint(base)
