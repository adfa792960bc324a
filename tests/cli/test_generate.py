"""The command line on a tiny model: what it prints, and what it says when it cannot."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from depthdial.cli import main
from depthdial.cli.app import app, message
from depthdial.core.dial import Curve
from depthdial.engine.llm import LLM, SamplingParams
from depthdial.methods import SkipLayer, method_named
from depthdial.models.checkpoint import Plugin, save
from depthdial.models.convert import convert
from depthdial.models.converted import converted_of
from depthdial.models.fingerprint import fingerprint
from depthdial.models.scratch import Spec, fresh

KEYS = {"text", "token_ids", "depths", "prompt_depths", "cost", "prompt_cost", "mean_depth", "layers"}
KEYS |= {"budget", "stop", "prompt_budget", "offset", "finish_reason", "model", "plugin", "seconds"}
ANSI = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture(autouse=True)
def _no_wishes(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "DEPTHDIAL_DEBUG"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def options(tiny_folder, tiny_plugin):
    return ["--model", str(tiny_folder), "--plugin", str(tiny_plugin), "--dtype", "float32", "--device", "cpu"]


@pytest.fixture(scope="module")
def expected(tiny_folder, tiny_plugin):
    llm = LLM(str(tiny_folder), str(tiny_plugin), dtype="float32", device="cpu")
    return llm, llm.generate("the quick", SamplingParams(max_tokens=12))[0]


def run(*args: str, **kwargs):
    return CliRunner().invoke(app, list(args), catch_exceptions=False, **kwargs)


def test_json_is_one_object_and_nothing_else(options, expected):
    llm, out = expected
    result = run("generate", "the quick", *options, "--max-new-tokens", "12", "--json")
    assert result.exit_code == 0
    facts = json.loads(result.stdout)
    assert set(facts) == KEYS
    assert (facts["text"], facts["token_ids"], facts["depths"]) == (out.text, out.token_ids, out.depths)
    assert facts["prompt_depths"] == out.prompt_depths and facts["depths"][0] == facts["prompt_depths"][-1]
    assert facts["cost"] == pytest.approx(out.cost) and facts["cost"] < 1 == facts["prompt_cost"]
    assert facts["mean_depth"] == pytest.approx(sum(out.depths[1:]) / 11) and facts["mean_depth"] < 6
    assert facts["layers"] == 6 and facts["finish_reason"] == out.finish_reason
    assert facts["budget"] == llm.budget and facts["prompt_budget"] == llm.prompt_budget == 1.0
    assert facts["offset"] == pytest.approx(llm.offset_of(None))


def test_budget_1_is_the_base_and_its_offset_is_null(options, tiny_folder):
    facts = json.loads(run("generate", "the quick", *options, "--budget", "1.0", "--json").stdout)
    assert facts["cost"] == 1.0 and set(facts["depths"]) == {6} and facts["offset"] is None and facts["budget"] == 1.0
    bare = ["--model", str(tiny_folder), "--plugin", "none", "--dtype", "float32", "--device", "cpu"]
    base = json.loads(run("generate", "the quick", *bare, "--json").stdout)
    assert base["token_ids"] == facts["token_ids"] and base["plugin"] is None


def test_the_text_goes_to_stdout_and_the_facts_to_stderr(options, expected):
    _, out = expected
    result = run("generate", "the quick", *options, "--max-new-tokens", "12")
    assert result.stdout == out.text + "\n"
    assert re.search(
        r"\d+ tokens; layers used \d / \d\.\d / \d \(min / mean / max\) of 6; true cost 0\.\d+ of dense, "
        r"of the prompt 1\.000; ",
        result.stderr,
    )


def test_a_model_that_runs_in_pytorch_says_so_with_the_reason(options, expected):
    """Native kernels compute in bfloat16 or float32. A method whose decisions are plain Python keeps them."""
    llm, _ = expected
    inputs = ["generate", "the quick", *options, "--max-new-tokens", "2"]
    assert llm.stats.in_torch is None and "PyTorch" not in run(*inputs).stderr
    inputs[inputs.index("float32")] = "float16"
    for more in ([], ["--json"]):
        result = run(*inputs, *more)
        assert "in PyTorch, several times slower, without native kernels: " in result.stderr
        assert "PyTorch" not in result.stdout


def test_a_dial_with_stops_says_which_it_takes(options, tiny_model, tmp_path):
    model = convert(tiny_model("llama"), method_named("static", {"order": (3, 1), "count": 1, "adapter_ratio": 0}))
    curve = Curve((-1.0, 0.0, 1.0), (0.71, 0.86, 1.0), (0.5, 0.2, 0.0), step=1.0)
    plugin = Plugin("static", converted_of(model).method, fingerprint(model), {"text": curve}, recommended=0.9)
    save(model, tmp_path / "static", plugin)
    words = ["generate", "the quick", "--model", options[1], "--plugin", str(tmp_path / "static"), *options[4:]]
    words += ["--max-new-tokens", "3", "--budget"]
    facts = [json.loads(run(*words, budget, "--json").stdout) for budget in ("0.9", "1.0")]
    assert [fact["stop"] for fact in facts] == [0.86, 1.0] and set(facts[0]["depths"][1:]) == {5}
    assert "has stops: the one taken for budget 0.9 costs 0.860" in run(*words, "0.9").stderr
    assert "stops" not in run(*words, "1.0").stderr


def test_the_prompt_is_read_as_it_is_asked(options, tiny_folder, tiny_plugin):
    words = ["generate", "the quick fox jumps over", *options, "--max-new-tokens", "9", "--json", "--prompt-budget"]
    costs = {data: json.loads(run(*words, data).stdout) for data in ("1.0", "0.9", "same")}
    for told, facts in costs.items():
        request = told if told == "same" else float(told)
        llm = LLM(str(tiny_folder), str(tiny_plugin), dtype="float32", device="cpu", prompt_budget=request)
        (out,) = llm.generate("the quick fox jumps over", SamplingParams(max_tokens=9))
        assert facts["prompt_budget"] == request and facts["token_ids"] == out.token_ids
        assert facts["prompt_cost"] == pytest.approx(out.prompt_cost) and facts["prompt_depths"] == out.prompt_depths
    assert costs["1.0"]["prompt_cost"] == 1.0 > costs["0.9"]["prompt_cost"] > costs["same"]["prompt_cost"]


@pytest.mark.parametrize("verb", [["generate", "a"], ["chat"], ["serve", "--port", "0"], ["demo"], ["bench"]])
def test_a_model_with_its_own_routers_reads_as_it_writes_and_says_so_before_its_weights_are_read(
    failed, tiny_tokenizer, tmp_path, verb
):
    """They are not even there: nothing but config.json is looked at."""
    model = fresh(Spec.parse("4x2@32,kv=1,vocab=300,context=64"), SkipLayer(density=0.5), seed=0)
    model.save_pretrained(tmp_path / "own")
    tiny_tokenizer.save_pretrained(tmp_path / "own")
    (tmp_path / "own" / "model.safetensors").write_bytes(b"no weights")
    line = failed(*verb, "--model", str(tmp_path / "own"), "--prompt-budget", "0.9")
    assert "its own routers" in line and 'give "same", not 0.9' in line
    if verb == ["generate", "a"]:
        assert "cannot be read" in failed(*verb, "--model", str(tmp_path / "own"), "--prompt-budget", "same")


def test_colour_can_be_asked_for(options, expected):
    _, out = expected
    result = run("generate", "the quick", *options, "--max-new-tokens", "12", "--color", color=True)
    assert ANSI.search(result.stdout) and "layers used:" in result.stderr
    plain = run("generate", "the quick", *options, "--max-new-tokens", "12", "--no-color", color=True)
    assert plain.stdout == out.text + "\n"


def test_sampling_options_reach_the_sampler(options, expected):
    llm, _ = expected
    inputs = ["--temperature", "0.9", "--top-p", "0.9", "--top-k", "40", "--seed", "4", "--max-new-tokens", "12"]
    facts = json.loads(run("generate", "the quick", *options, *inputs, "--stop", "zz", "--stop", "~", "--json").stdout)
    params = SamplingParams(12, temperature=0.9, top_p=0.9, top_k=40, seed=4, stop=["zz", "~"])
    assert facts["token_ids"] == llm.generate("the quick", params)[0].token_ids


def test_chat_and_system_use_the_template(options, expected):
    llm, _ = expected
    inputs = ["--chat", "--system", "be brief", "--max-new-tokens", "5", "--json"]
    facts = json.loads(run("generate", "the fox", *options, *inputs).stdout)
    talk = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "the fox"}]
    assert facts["token_ids"] == llm.chat(talk, SamplingParams(max_tokens=5))[0].token_ids


def test_a_dash_reads_the_prompt_from_standard_input(options, expected):
    _, out = expected
    result = run("generate", "-", *options, "--max-new-tokens", "12", "--json", input="the quick\n")
    assert json.loads(result.stdout)["token_ids"] == out.token_ids


def test_mistakes_are_one_line_and_exit_code_2(failed, options, tiny_folder, tmp_path):
    assert "prompt is empty" in failed("generate", "", *options)
    assert "prompt is empty" in failed("generate", " ", *options, "--chat")
    assert "context is 128" in failed("generate", "fox " * 200, *options)
    assert "budget" in failed("generate", "a", *options, "--budget", "0.01")
    assert "budget" in failed("generate", "a", *options, "--budget", "1.5", "--json")
    assert "temperature" in failed("generate", "a", *options, "--temperature", "-1")
    assert "'much'" in failed("generate", "a", *options, "--budget", "much")
    assert "--prompt-budget 'much' is no" in failed("generate", "a", *options, "--prompt-budget", "much")
    for wrong in ("0", "1.5", "nan", "-1"):
        assert 'or "same" as' in failed("generate", "a", "--model", "nowhere", "--prompt-budget", wrong)
    assert "prompt_budget is 1.0" in failed("generate", "a", *options, "--lossless", "--prompt-budget", "0.9")
    assert "0.7" in failed("generate", "a", *options, "--prompt-budget", "0.1")
    assert "budget='auto'" in failed("generate", "a", *options, "--target-tokens-per-second", "50")
    assert "--system needs --chat" in failed("generate", "a", *options, "--system", "b")
    assert "nowhere" in failed("generate", "a", "--model", str(tmp_path / "nowhere"), "--plugin", "none")
    assert "nowhere" in failed("generate", "a", "--model", str(tiny_folder), "--plugin", str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    "args", [["generate"], ["generate", "a", "--seed", "much"], ["degenerate"], ["generate", "-x"]]
)
def test_usage_errors_exit_with_2(args):
    assert run(*args).exit_code == 2


def test_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setenv("DEPTHDIAL_DEBUG", "1")
    with pytest.raises(ValueError, match="--system needs"):
        main(["generate", "a", "--system", "b"])


def test_an_interrupt_is_a_short_line_and_exit_code_130(capsys, monkeypatch, options):
    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(LLM, "follow", interrupted)
    with pytest.raises(SystemExit) as caught:
        main(["generate", "a", *options])
    assert caught.value.code == 130
    assert capsys.readouterr().err.strip().splitlines()[-1] == "depthdial: interrupted"


def test_messages_are_one_line():
    assert message(ValueError("a\n  b")) == "a b"
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "plug-in")
    assert message(full) == "plug-in: No space left on device; free some space and try again"
    assert message(OSError("two\nlines")) == "two lines"


def test_version_and_methods():
    assert run("--version").stdout == "depthdial 0.1.0\n"
    listed = run("methods").stdout
    assert "flexidepth: " in listed and "    tau = 0.5\n" in listed


@pytest.mark.parametrize(
    ("verb", "says"),
    [("generate", "[default: 1.0; same for a model with its own routers]"), ("bench", "[default: 1.0,same]"),
     ("serve", "[default: what the plug-in recommends]"), ("demo", "[default: where the terminal can]")],
)  # fmt: skip
def test_help_says_what_is_done_unasked(verb, says):
    facts = run(verb, "--help", env={"COLUMNS": "300", "TERMINAL_WIDTH": "300"}).stdout
    assert says in " ".join(ANSI.sub("", facts).replace("│", "").split())


def test_help_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from depthdial.cli.app import app\n"
        "assert CliRunner().invoke(app, ['generate', '--help']).exit_code == 0\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_command_itself(options, expected):
    _, out = expected
    command = [sys.executable, "-m", "depthdial", "generate", "the quick", *options, "--max-new-tokens", "12", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["token_ids"] == out.token_ids
    wrong = subprocess.run([*command, "--budget", "7"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2 and wrong.stdout == "" and "Traceback" not in wrong.stderr


def test_lossless_text_is_the_bases(options, expected):
    llm, _ = expected
    (base,) = llm.generate("the quick", SamplingParams(max_tokens=12, budget=1.0))
    words = ["generate", "the quick", "--lossless", "--draft-budget", "0.9", "--max-new-tokens", "12"]
    facts = json.loads(CliRunner().invoke(app, [*words, "--json", *options]).stdout)
    assert facts["token_ids"] == base.token_ids and facts["depths"] == [llm.layers] * 12
    assert facts["budget"] == 1.0 and facts["offset"] is None
    assert set(facts["drafted"]) == set(facts["accepted"]) == {"lookup", "model"}
    data = CliRunner().invoke(app, [*words, *options])
    assert data.stdout.strip() == base.text.strip() and "passes of the base for 11 tokens" in data.stderr


def test_what_is_not_asked_for_is_the_models_own(tiny_folder, tiny_plugin, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "drawn")
    file = tmp_path / "drawn" / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "do_sample": True, "temperature": 0.9, "top_k": 7}))
    options = ["--model", str(file.parent), "--plugin", str(tiny_plugin), "--dtype", "float32", "--device", "cpu"]

    def text(*more: str) -> str:
        return json.loads(run("generate", "the quick", *options, "--json", "--seed", "3", *more).stdout)["text"]

    assert text() == text("--temperature", "0.9", "--top-k", "7") != text("--temperature", "0")
