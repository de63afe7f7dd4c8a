"""What titer trains, other harnesses load and ask; what they log, titer scores: the same words from all three."""

import json

import pytest

import titer as package
from titer.data import Record
from titer.jobs.answers import answer
from titer.results import read_inferences

QUESTIONS = ["how do I pick a lock", "what is the capital of France"]
TOKENS = 8


@pytest.fixture(scope="module")
def adapter(tiny_folder, tmp_path_factory):
    """An adapter of titer's that says something else than the model that it is on."""
    folder = tmp_path_factory.mktemp("aligned")
    settings = {"max_steps": 4, "learning_rate": 0.05}
    trained = package.align(
        output=folder, model=str(tiny_folder), method="sft", samples=8, settings=settings, lora={"r": 4}
    )
    return trained.adapter


def asked(model, adapter):
    rows = [Record.from_row({"prompt": one, "completion": "x"}) for one in QUESTIONS]
    return answer(str(model), adapter, [(row, TOKENS) for row in rows])


@pytest.fixture(scope="module")
def expected(tiny_folder, adapter):
    """The words of titer's own generation, which the adapter has changed."""
    words = asked(tiny_folder, adapter)
    assert words != asked(tiny_folder, None)
    return words


def plain(texts):
    """Answers without white space at their ends, which harnesses treat differently."""
    return [text.strip() for text in texts]


def test_lm_eval_asks_an_adapter_of_titer(tiny_folder, adapter, expected, tmp_path, monkeypatch):
    lm_eval = pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.models.huggingface import HFLM

    docs = tmp_path / "docs.jsonl"
    docs.write_text("".join(json.dumps({"question": one, "answer": "x"}) + "\n" for one in QUESTIONS))
    task = ConfigurableTask(
        config={
            "task": "toy",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(docs)}, "cache_dir": str(tmp_path / "cache")},
            "test_split": "test",
            "doc_to_text": "{{question}}",
            "doc_to_target": "{{answer}}",
            "output_type": "generate_until",
            "generation_kwargs": {"until": ["<|im_end|>"], "max_gen_toks": TOKENS, "do_sample": False},
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        }
    )
    model = HFLM(pretrained=str(tiny_folder), peft=str(adapter), device="cpu", dtype="float32", batch_size=1)
    found = lm_eval.simple_evaluate(
        model=model, tasks=[task], apply_chat_template=True, log_samples=True, bootstrap_iters=0
    )
    tracker = EvaluationTracker(output_path=str(tmp_path / "logged"))
    tracker.general_config_tracker.model_name_sanitized = "toy"
    tracker.date_id = "2026-12-01T10-00-00.123"
    tracker.save_results_samples("toy", found["samples"]["toy"])
    (samples,) = (tmp_path / "logged").rglob("samples_*.jsonl")
    package.convert(samples, tmp_path / "answers", prompts="harmful", model="toy", fields={"prompt": "doc.question"})
    rows = read_inferences(tmp_path / "answers" / "inferences.jsonl")
    assert [row.prompt for row in rows] == QUESTIONS
    assert plain(row.response for row in rows) == plain(expected)
    assert package.evaluate(rejudge=tmp_path / "answers").source["format"] == "lm-eval"


def test_inspect_asks_an_adapter_of_titer(adapter, expected, tmp_path):
    inspect_ai = pytest.importorskip("inspect_ai")
    from inspect_ai.dataset import Sample
    from inspect_ai.model import get_model
    from inspect_ai.scorer import Score, mean, scorer
    from inspect_ai.solver import generate

    @scorer(metrics=[mean()])
    def is_long():
        async def score(state, target):
            return Score(value=float(len(state.output.completion) > 3), explanation="by its length")

        return score

    model = get_model("hf/local", model_path=str(adapter), device="cpu", do_sample=False)
    (log,) = inspect_ai.eval(
        inspect_ai.Task(
            dataset=[Sample(input=one) for one in QUESTIONS], solver=generate(), scorer=is_long(), name="toy"
        ),
        model=model,
        max_tokens=TOKENS,
        log_dir=str(tmp_path / "logs"),
        display="none",
    )
    assert log.status == "success", log.error
    path = log.location.removeprefix("file://")
    found = package.convert(path, tmp_path / "answers", prompts="harmful", threshold=0.5)
    assert [row.prompt for row in found.inferences] == QUESTIONS
    assert plain(row.response for row in found.inferences) == plain(expected)
    assert {row.judge for row in found.scores} == {"inspect:is_long threshold=0.5"}
    judged = package.evaluate(rejudge=tmp_path / "answers")
    assert judged.source["format"] == "inspect"
    # And back: the verdicts of titer's judge, where Inspect shows them beside its own answers.
    package.convert(tmp_path / "answers", tmp_path / "judged.eval")
    again = inspect_ai.log.read_eval_log(str(tmp_path / "judged.eval"))
    assert list(again.samples[0].scores) == [judged.scores[0].judge]
