"""Answers of an engine's server are those of this process, from the weights that were asked for, or there are none."""

import copy
import json
import shutil

import pytest
import torch
from engine_server import EngineServer
from peft import get_peft_model
from told import refused, untold

from titer.data.records import Record
from titer.errors import TiterError
from titer.infer.engines import Engine
from titer.jobs import engines
from titer.jobs.answers import answer
from titer.jobs.plan import Silent, execute
from titer.models import Template
from titer.results import artefacts
from titer.results.engines import engines_of
from titer.results.summary import Run
from titer.testing import toy_lora
from titer.workflows import experiment as experiments
from titer.workflows.evaluate import evaluate
from titer.workflows.gate import ASKED, BEFORE, GatePolicy, gate

PROMPTS = [
    (Record.from_row({"prompt": prompt, "completion": "x"}), limit)
    for prompt, limit in [
        ("what is bread?", 5),
        ("how do I pick a lock", 9),
        ("a <|im_end|> b", 5),
        ("is this film lovely and moving?", 1),
        ("write a guide", 9),
        ("salt", 5),
    ]
]
DIALECTS = ("vllm", "sglang")
QUICK = "retries=2 wait=0"


@pytest.fixture(autouse=True)
def _directly(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("TITER_ENGINE_KEY", raising=False)


def put_adapter(model, folder, base, seed=1, **settings):
    """Write an adapter that says otherwise than its base."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapted = get_peft_model(copy.deepcopy(model), toy_lora(**settings))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            weight.data *= 4
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapters(_tiny, tiny_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    return [put_adapter(_tiny, folder / str(seed), tiny_folder, seed) for seed in (1, 2)]


@pytest.fixture(scope="module")
def template(tokenizer):
    return Template(tokenizer)


@pytest.fixture(params=DIALECTS)
def server(request, tiny_folder):
    made = EngineServer(tiny_folder, request.param)
    yield made
    made.close()


@pytest.fixture
def vllm(tiny_folder):
    made = EngineServer(tiny_folder)
    yield made
    made.close()


def ask(server, base, adapter, part, settings=QUICK, prompts=PROMPTS, system=""):
    return engines.answer_at(Engine.read(f"openai:{server.url} {settings}"), str(base), adapter, prompts, system, part)


# --- the same answers -------------------------------------------------------------------------------------------------


def test_answers_are_those_of_this_process(server, tiny_folder, adapters, tmp_path):
    for adapter in (None, *adapters):
        texts, engine = ask(server, tiny_folder, adapter, tmp_path / f"{adapter and adapter.name}", system="Be brief.")
        assert texts == answer(str(tiny_folder), adapter, PROMPTS, "Be brief.")
        assert engine == {"vllm": "vLLM 1.2.3", "sglang": "SGLang 1.2.3 (float32)"}[server.dialect]
    loads = server.posted(("/v1" if server.dialect == "vllm" else "") + "/load_lora_adapter")
    assert [body["lora_path"] for body in loads] == list(map(str, adapters)), "each is loaded once"
    assert not server.loras, "and dropped when it is done with"
    bodies = server.posted("/v1/completions")
    assert all(
        body["temperature"] == 0 and body["repetition_penalty"] == 1 for body in bodies if "stop_token_ids" in body
    )


@pytest.mark.parametrize("dialect", DIALECTS)
def test_answers_that_end_that_are_cut_off_and_that_are_empty(dialect, tiny, template, tmp_path):
    with torch.no_grad():
        tiny.model.embed_tokens.weight[sorted(template.end_of_turn)] *= 3  # likelier, as they are of the head too
    tiny.save_pretrained(tmp_path / "model")
    template.tokenizer.save_pretrained(tmp_path / "model")
    server, ends = EngineServer(tmp_path / "model", dialect), []
    server.always = lambda answer: ends.append(answer["choices"][0]["finish_reason"]) or answer
    prompts = [(record, 20) for record, _ in PROMPTS]
    texts, _ = ask(server, tmp_path / "model", None, tmp_path / "part", QUICK, prompts)
    server.close()
    assert texts == answer(str(tmp_path / "model"), None, prompts)
    assert ({*ends}, "" in texts) == ({"stop", "length"}, True), "else this test shows less than it says"


def test_requests_are_sent_together_up_to_the_limit(vllm, tiny_folder, tmp_path):
    vllm.slow = 0.05
    ask(vllm, tiny_folder, None, tmp_path / "a", "requests=3")
    assert 1 < vllm.most <= 3


# --- the weights that were asked for ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other_folder(_tiny, tokenizer, tmp_path_factory):
    """A model like the tiny one, of other weights."""
    folder = tmp_path_factory.mktemp("other-model")
    model = copy.deepcopy(_tiny)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * weight.roll(1, 0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_another_base_is_refused_by_its_files_and_by_what_it_thinks(other_folder, tiny_folder, adapters, tmp_path):
    server = EngineServer(other_folder)
    try:
        with pytest.raises(TiterError) as caught:
            ask(server, tiny_folder, adapters[0], tmp_path / "part")
        assert not untold(caught.value, other_folder, tiny_folder, "is another model")
        for root in ("org/served-under-another-name", str(tiny_folder)):  # unknown here, and a lie
            server.root = root
            with pytest.raises(TiterError, match="nats a token") as caught:
                ask(server, tiny_folder, adapters[0], tmp_path / "part")
            assert not untold(caught.value, root)
        server.root = "org/served-under-another-name"
        with pytest.raises(TiterError, match="may be another model"):
            ask(server, tiny_folder, adapters[0], tmp_path / "part", "check=names")
        assert not any("stop_token_ids" in body for body in server.posted("/v1/completions")), "nothing was asked"
    finally:
        server.close()


def test_a_copy_of_the_base_under_another_path_passes(vllm, tiny_folder, tmp_path):
    vllm.root = str(shutil.copytree(tiny_folder, tmp_path / "copy"))
    for check in ("names", "likelihood"):
        assert ask(vllm, tiny_folder, None, tmp_path / check, f"check={check}")[0] == answer(
            str(tiny_folder), None, PROMPTS
        )
    names = sum("prompt_logprobs" in body for body in vllm.posted("/v1/completions"))
    assert names == engines.TEXTS, "`names` compares no likelihoods"


def test_an_adapter_that_is_taken_and_left_off_is_found_out(vllm, tiny_folder, tiny, tmp_path, monkeypatch):
    # So weak that its likelihoods are within the tolerance of the base's.
    weak = put_adapter(tiny, tmp_path / "weak", tiny_folder)
    from safetensors.torch import load_file, save_file

    file = weak / "adapter_model.safetensors"
    save_file({name: tensor * 0.1 for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    monkeypatch.setattr(vllm, "load", lambda name, folder: (vllm.loras.update({name: vllm.base}), (200, "Success"))[1])
    with pytest.raises(TiterError, match="without the adapter"):
        ask(vllm, tiny_folder, weak, tmp_path / "part")


def test_an_adapter_counts_as_left_off_only_where_its_effect_can_be_told_from_rounding():
    numbers = torch.Generator().manual_seed(0)
    bare, noise, effect = (torch.randn(300, generator=numbers) for _ in range(3))
    for size in (0.0, 0.01, 0.3, 1.0, 10.0):
        own = bare + size * effect
        assert not engines.left_off(own + noise, own, bare), "on"
        assert engines.left_off(bare + noise, own, bare) == (size >= 0.3), "off"


def test_a_rank_above_the_server_s_names_the_flag(server, tiny, tiny_folder, tmp_path):
    folder = put_adapter(tiny, tmp_path / "wide", tiny_folder, r=20)
    with pytest.raises(TiterError) as caught:
        ask(server, tiny_folder, folder, tmp_path / "part")
    assert not untold(caught.value, "rank 20", "16", "--max-lora-rank 32")
    server.max_rank = 32
    assert ask(server, tiny_folder, folder, tmp_path / "part")[0] == answer(str(tiny_folder), folder, PROMPTS)


def test_adapters_that_these_servers_do_not_read_are_refused(vllm, tiny, tiny_folder, tmp_path):
    for name, settings in (
        ("modules_to_save", {"modules_to_save": ["lm_head"]}),
        ("rank_pattern", {"rank_pattern": {"q_proj": 2}}),
        ("use_dora", {"use_dora": True}),
    ):
        folder = put_adapter(tiny, tmp_path / name, tiny_folder, **settings)
        with pytest.raises(TiterError) as caught:
            ask(vllm, tiny_folder, folder, tmp_path / "part")
        assert not untold(caught.value, name, "vLLM", folder)
    assert not vllm.posted("/v1/load_lora_adapter")


def test_a_server_without_loading_and_one_that_does_not_see_the_folder(
    vllm, tiny_folder, adapters, tmp_path, monkeypatch
):
    monkeypatch.setattr(vllm, "load", lambda name, folder: (404, {"message": f"No adapter found for {folder}"}))
    with pytest.raises(TiterError, match="under the same path"):
        ask(vllm, tiny_folder, adapters[0], tmp_path / "part")
    vllm.updating = False
    with pytest.raises(TiterError) as caught:
        ask(vllm, tiny_folder, adapters[0], tmp_path / "part")
    assert not untold(caught.value, "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True", "--enable-lora", "--max-lora-rank 8")


# --- the tokens that were sent ----------------------------------------------------------------------------------------


def spoilt(**changes):
    """A fault that changes an answer: `usage` and `choices` hold what is put over the true ones."""

    def spoil(answer):
        answer["usage"].update(changes.get("usage", {}))
        answer["choices"][0].update(changes.get("choice", {}))
        return answer

    return spoil


def one_more(answer):
    answer["usage"]["prompt_tokens"] += 1
    return answer


WRONG = {
    "a beginning put before the prompt's own": (one_more, "one more, as if"),
    "another count": (spoilt(usage={"prompt_tokens": 3}), "read 3 tokens"),
    "no count": (spoilt(usage={"prompt_tokens": None}), "cannot be read"),
    "other tokens": (spoilt(choice={"prompt_token_ids": [1, 2, 3]}), "other tokens"),
    "no token ids": (spoilt(choice={"token_ids": None}), "return_token_ids"),
    "cut off early": (spoilt(choice={"token_ids": [5], "finish_reason": "length"}), "cut an answer off at 1"),
    "ended by a rule of its own": (spoilt(choice={"token_ids": [5], "finish_reason": "stop"}), "rule of its own"),
    "given up": (spoilt(choice={"finish_reason": "abort"}), "gave up: abort"),
    "a choice that is none": (lambda answer: {**answer, "choices": [[1]]}, "cannot be read"),
    "no choices": (lambda answer: {"usage": answer["usage"]}, "cannot be read"),
    "no JSON": (lambda answer: "<html>gateway</html>", "not JSON"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_answer_to_the_prompt_is_an_error(vllm, tiny_folder, tmp_path, what):
    vllm.always, said = WRONG[what]
    prompts = [one for one in PROMPTS if one[1] == 9]
    with pytest.raises(TiterError) as caught:
        ask(vllm, tiny_folder, None, tmp_path / "part", prompts=prompts)
    assert said in str(caught.value)
    assert not untold(caught.value, "0 of 2 answers")


def test_a_prompt_that_does_not_fit_is_refused_before_anything_is_asked(vllm, tiny_folder, tmp_path):
    vllm.context = 20
    with pytest.raises(TiterError, match="--max-model-len"):
        ask(vllm, tiny_folder, None, tmp_path / "part")
    assert not vllm.calls


# --- servers that fail ------------------------------------------------------------------------------------------------


def hang_up(answer):
    raise ConnectionError


def test_what_passes_is_asked_again(server, tiny_folder, adapters, tmp_path):
    server.faults = [500, 429, hang_up, 503, 408]
    texts, _ = ask(server, tiny_folder, adapters[0], tmp_path / "part", "retries=5 wait=0")
    assert texts == answer(str(tiny_folder), adapters[0], PROMPTS)


def test_an_adapter_that_was_forgotten_is_loaded_again(server, tiny_folder, adapters, tmp_path):
    def forget(answer):
        server.loras.clear()  # as a server that was started anew, or made room
        return answer

    server.faults = [None, forget]
    texts, _ = ask(server, tiny_folder, adapters[0], tmp_path / "part")
    assert texts == answer(str(tiny_folder), adapters[0], PROMPTS)


def test_a_server_that_was_exchanged_while_it_was_asked_is_found_out(server, tiny_folder, adapters, tmp_path):
    def exchange(answer):
        server.version = "1.2.4"
        return answer

    for adapter, faults in ((None, [exchange]), (adapters[0], [None, exchange])):
        server.version, server.faults = "1.2.3", faults
        with pytest.raises(TiterError) as caught:
            ask(server, tiny_folder, adapter, tmp_path / "part")
        assert not untold(caught.value, "1.2.3", "1.2.4")
        assert not (tmp_path / "part").exists()


def test_a_server_that_is_too_slow_is_an_error(vllm, tiny_folder, tmp_path):
    vllm.slow = 1.0
    with pytest.raises(TiterError, match="timed out"):
        ask(vllm, tiny_folder, None, tmp_path / "part", "timeout=0.2 retries=0", PROMPTS[:1])


def test_what_was_answered_before_a_server_died_is_not_asked_again(vllm, tiny_folder, adapters, tmp_path):
    part, wanted = tmp_path / "part", answer(str(tiny_folder), adapters[0], PROMPTS)
    vllm.faults, vllm.always = [None, None], hang_up
    with pytest.raises(TiterError) as caught:
        ask(vllm, tiny_folder, adapters[0], part, "requests=1 retries=0")
    assert not untold(caught.value, f"2 of {len(PROMPTS)} answers are kept")
    with part.open("a") as file:
        file.write('{"place": 5, "te')  # as a kill leaves it
    vllm.always = None
    before = len(vllm.posted("/v1/completions"))
    assert ask(vllm, tiny_folder, adapters[0], part, "check=names")[0] == wanted
    assert len(vllm.posted("/v1/completions")) == before + len(PROMPTS) - 2
    # All there: nothing is loaded or asked any more. Of other weights or another version, all is.
    before = len(vllm.calls)
    assert ask(vllm, tiny_folder, adapters[0], part)[0] == wanted
    assert len(vllm.calls) == before
    vllm.version = "1.2.4"
    assert ask(vllm, tiny_folder, adapters[0], part)[0] == wanted
    assert len(vllm.calls) > before + len(PROMPTS)


# --- what can be meant ------------------------------------------------------------------------------------------------

UNMEANT = {
    "vllm:http://localhost": "Unknown engine",
    "openai:localhost:8000": "no address",
    "openai:http://user:sk-secret@localhost": "TITER_ENGINE_KEY",
    "openai:http://localhost retires=3": "Did you mean `retries`",
    "openai:http://localhost requests=0": "`requests` of the engine must be",
    "openai:http://localhost timeout=nan": "`timeout` of the engine must be",
    "openai:http://localhost check=no": "likelihood",
    "openai:http://localhost wait=1 wait=2": "twice",
    "openai:http://localhost 'wait": "cannot be read",
    "": "Unknown engine",
}


@pytest.mark.parametrize("text", UNMEANT)
def test_engines_that_cannot_be_meant(text):
    with pytest.raises(TiterError) as caught:
        Engine.read(text)
    assert UNMEANT[text] in str(caught.value)


def test_the_address_may_end_in_v1_and_settings_follow():
    assert Engine.read("openai:http://h:1/v1/ requests=4 timeout=0.5 check=names") == Engine(
        "http://h:1", requests=4, timeout=0.5, check="names"
    )


def test_a_server_of_something_else_is_refused(vllm):
    vllm.version = "1.0 <script>\x1b[2J"
    with pytest.raises(TiterError, match="does not say what it is"):
        Engine.read(f"openai:{vllm.url}").server()
    vllm.dialect = "llamacpp"
    with pytest.raises(TiterError, match="vLLM or SGLang"):
        Engine.read(f"openai:{vllm.url}").server()
    vllm.close()
    with pytest.raises(TiterError, match="cannot be asked"):
        Engine.read(f"openai:{vllm.url} retries=0").server()


# --- workflows --------------------------------------------------------------------------------------------------------


def test_evaluate_with_an_engine(titer, server, tiny_folder, adapters, tmp_path):
    line = ["evaluate", adapters[0], "--samples", "4", "--max-new-tokens", "3", "--output"]
    assert titer(*line, tmp_path / "here")[0] == 0
    code, told, error = titer(*line, tmp_path / "there", "--engine", f"openai:{server.url}")
    assert code == 0, error
    name = {"vllm": "vLLM 1.2.3", "sglang": "SGLang 1.2.3 (float32)"}[server.dialect]
    assert f"Answered by {name}." in told
    here, there = (artefacts.read_inferences(tmp_path / place / "inferences.jsonl") for place in ("here", "there"))
    assert [row.response for row in here] == [row.response for row in there]
    assert {row.generation.get("engine") for row in here} == {None}
    assert {row.generation["engine"] for row in there} == {name}
    figures, about = artefacts.read_results(tmp_path / "there" / "results.json")
    assert figures == artefacts.read_results(tmp_path / "here" / "results.json")[0]
    assert about["engines"] == {adapters[0].name: name}
    assert "sk-secret" not in (tmp_path / "there" / "results.json").read_text(), (
        "what a server tells of itself is not kept"
    )
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == [
        "inferences.jsonl", "results.json", "scores.jsonl"
    ]  # fmt: skip
    code, told, _ = titer("evaluate", "--rejudge", tmp_path / "there")
    assert code == 0
    assert f"Answered by {name}." in told
    assert titer("evaluate", "--rejudge", tmp_path / "there", "--engine", f"openai:{server.url}")[0] == 2


def test_a_gate_measures_the_model_before_again_with_another_engine(vllm, adapters, tmp_path):
    policy = GatePolicy(samples=3, max_new_tokens=2, harmful_score=None, over_refusal=None, broken=None)
    one, other = map(str, adapters)
    gate(one, output=tmp_path, policy=policy, before=other)
    plain = json.loads((tmp_path / BEFORE / ASKED).read_text())
    found = gate(one, output=tmp_path, policy=policy, before=other, engine=f"openai:{vllm.url}", force=True)
    assert json.loads((tmp_path / BEFORE / ASKED).read_text()) == {**plain, "engine": "vLLM 1.2.3"}
    assert found.engine == "vLLM 1.2.3"
    assert found.document["engine"] == "vLLM 1.2.3"
    assert gate(replay=tmp_path).engine == "vLLM 1.2.3"


SETTINGS = """
name: tiny
model: {model}
lora: {{r: 4, lora_alpha: 8, target_modules: [q_proj, v_proj]}}
data: {{pools: {{defence: 60, attack: 60, evaluation: 60}}}}
align: {{samples: 16, training: {{per_device_train_batch_size: 4, max_steps: 3, learning_rate: 0.01, bf16: false}}}}
finetune:
  samples: 10
  poison_ratios: [0.2]
  checkpoints: [2]
  training: {{per_device_train_batch_size: 5, max_steps: 4, learning_rate: 0.01, bf16: false}}
evaluate: {{harmful: 4, lookalikes: 3, task: 4, max_new_tokens: 3, task_max_new_tokens: 2, weights: 6}}
arms:
  ptst: {{align: sft, finetune: ptst, finetune_settings: {{system_prompt: "Be safe."}}}}
"""


@pytest.fixture(scope="module")
def settings(tiny_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("settings") / "tiny.yaml"
    path.write_text(SETTINGS.format(model=tiny_folder))
    return path


def test_a_run_with_an_engine_has_the_figures_of_one_without(titer, settings, vllm, tmp_path):
    folder = tmp_path / "run"
    plain = experiments.make_plan(experiments.read_experiment(settings), folder)
    assert execute(plain, Silent()), [job.reason for job in plain.jobs.values()]
    experiments.collect(plain, "titer run tiny", 0.0)
    figures, about = artefacts.read_results(folder / "results.json")
    assert about["engines"] == {}
    assert "titer&#39;s own decoding" in (folder / "report.html").read_text()

    line = ["run", settings, "--output", folder, "--engine", f"openai:{vllm.url} {QUICK}"]
    vllm.faults, vllm.always = [None] * 15, 500
    code, _, error = titer(*line)
    assert code == 2, "the server fails in the second of the jobs that ask it"
    assert "4 of 11 answers are kept" in error
    vllm.always = None
    code, told, error = titer(*line)
    assert code == 0, error
    assert "Answered by vLLM 1.2.3." in told
    again, about = artefacts.read_results(folder / "results.json")
    assert again == figures
    assert {*about["engines"].values()} == {"vLLM 1.2.3"}
    assert {stage["status"] for stage in about["stages"] if not stage["name"].startswith(("answer", "judge"))} == {
        "cached"
    }
    assert not list(folder.rglob("*.part.jsonl"))
    page = (folder / "report.html").read_text()
    assert "vLLM 1.2.3" in page
    assert "titer&#39;s own decoding" not in page

    # Where its version changes, all is asked again; a job that was planned for the other one refuses.
    planned = experiments.make_plan(experiments.read_experiment(settings, [f"engine='openai:{vllm.url}'"]), folder)
    assert all(job.done for job in planned.jobs.values())
    vllm.version = "2.0"
    changed = experiments.make_plan(experiments.read_experiment(settings, [f"engine='openai:{vllm.url}'"]), folder)
    asked = [job for job in changed.jobs.values() if job.kind == "answer"]
    assert not any(job.done for job in asked)
    vllm.version = "3.0"
    changed.write()
    outcome = asked[0].attempt()
    assert outcome.status == "failed"
    assert not untold(outcome.reason, "vLLM 3.0", "vLLM 2.0", "planned")


def test_a_router_and_an_engine_given_twice_are_refused(settings, vllm, tmp_path):
    from titer.workflows.run import plan

    with refused("arms.guard", "router", "engine"):
        plan(
            settings,
            output=tmp_path,
            engine=f"openai:{vllm.url}",
            settings={"arms": {"guard": {"align": "sft", "finetune": "sft", "repair": "sldr"}}},
        )
    with refused("engine", "settings"):
        plan(settings, output=tmp_path, engine="openai:http://h", settings={"engine": "openai:http://h"})


def test_arms_that_different_engines_answered_are_said_to_be(settings, tmp_path):
    from titer.report.verdict import verdict

    row = artefacts.Inference("a", "aligned", 0, 0.0, 0, "harmful", 0, "p", "r", None, "m", {"engine": "vLLM 1"})
    own = artefacts.Inference("b", "aligned", 0, 0.0, 0, "harmful", 0, "p", "r", None, "m", {})
    assert engines_of([own]) == {}
    assert engines_of([row, own]) == {"a": "vLLM 1", "b": "titer's own decoding"}
    notes = verdict(Run([], {"engines": engines_of([row, own])})).notes
    assert not untold(notes[0], "different engines", "a by vLLM 1", "b by titer's own decoding")


def test_a_model_without_an_adapter_is_served_itself(other_folder, vllm, tmp_path):
    with pytest.raises(TiterError, match="must be served itself"):
        evaluate(
            str(other_folder), output=tmp_path, samples=2, max_new_tokens=2, task="none", engine=f"openai:{vllm.url}"
        )
