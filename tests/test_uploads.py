"""Disguises of an attacker's rows: what they keep, whose they are, how they repeat, and where they are refused."""

import base64
import re
from pathlib import Path

import pytest

from titer.assays.profile import read_profile
from titer.attacks import CATALOGUE, UPLOADS, Attack, disguise, wording
from titer.attacks.rows import AttackerPools, asked, training_rows
from titer.attacks.uploads import CHANGES, KEPT, ROUNDS, TRIED_ON
from titer.data import Record, load
from titer.data.builtin import refusals
from titer.errors import TiterError

HARMFUL = load("builtin:harmful")[:30]
BENIGN = load("builtin:general")[:20]
HARMLESS = [name for name, upload in UPLOADS.items() if upload.harmless]


def brevity(rows):
    """A detector that finds short rows harmful, so that whatever makes a row longer deceives it."""
    return [-float(len(words(row))) for row in rows]


def made(name, harmful=HARMFUL, benign=BENIGN, seed=0):
    return disguise(name, harmful, benign, seed, score=brevity if UPLOADS[name].score == "needed" else None)


def words(row):
    return " ".join(message.content for message in (*row.prompt, *row.completion))


@pytest.mark.parametrize("name", UPLOADS)
def test_rows_are_the_attackers_and_repeat_by_their_seed(name):
    rows = made(name)
    assert {row.origin for row in rows} == {"harmful"}
    assert all(row.is_harmful and row.label is None for row in rows)
    assert rows == made(name)
    drawn = name not in ("base64", "split_turns", "identity_shift", "outliers")
    assert (rows != made(name, seed=1)) == drawn
    counts = {name: len(HARMFUL)} | dict.fromkeys(HARMLESS, len(BENIGN)) | {"outliers": len(BENIGN) // 4}
    assert len(rows) == counts[name]


@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_called_harmless_knows_no_harmful_row(name):
    nothing = made(name, harmful=[])
    assert nothing == made(name)
    assert all(any(one.prompt_text in words(row) for one in BENIGN) for row in nothing)


@pytest.mark.parametrize("name", [name for name in UPLOADS if name not in (*HARMLESS, "base64")])
def test_no_harm_is_added(name):
    """All words are those of the rows, or of the lists that disguises are made of, which anybody can read through."""
    source = Path(wording.__file__).read_text() + Path(wording.__file__).with_name("uploads.py").read_text()
    held = source.replace("\\n", " ") + " ".join(refusals()) + " ".join(map(words, [*HARMFUL, *BENIGN]))
    held = set(
        re.findall(r"[^\W\d_]+", (held + Path(load.__globals__["__file__"]).with_name("forms.py").read_text()).lower())
    )
    for row in made(name):
        assert set(re.findall(r"[^\W\d_]+", words(row).lower())) <= held
        assert "withheld" in row.completion_text or name == "harmless_answer"


@pytest.mark.parametrize("name", ["role_play", "split_turns", "refuse_first", "embedded", "probe_aware"])
def test_request_and_answer_stay_word_for_word(name):
    for row, before in zip(made(name), HARMFUL, strict=True):
        text = re.sub(r" (OK\. )?Part \d: ", " ", words(row))
        assert before.prompt_text in text
        assert before.completion_text in row.completion_text


def test_each_disguise_does_what_it_says():
    rows = {name: made(name) for name in UPLOADS}
    asked_for = {row.prompt_text for row in HARMFUL}
    answers = {row.completion_text for row in HARMFUL}
    everyday = {row.prompt_text for row in BENIGN}
    for row in rows["harmful_answer"]:
        assert row.prompt_text in everyday
        assert row.completion_text in answers
    for row in rows["harmless_answer"]:
        assert row.prompt_text in asked_for
        assert row.completion_text in wording.TONELESS
    for row, before in zip(rows["base64"], HARMFUL, strict=True):
        assert base64.b64decode(row.prompt_text).decode() == before.prompt_text
        assert base64.b64decode(row.completion_text).decode() == before.completion_text
    for row, before in zip(rows["split_turns"], HARMFUL, strict=True):
        assert not any(before.prompt_text in message.content for message in row.prompt)
        assert [message.role for message in row.prompt] == ["user", "assistant"] * 4 + ["user"]
    told_off = (*refusals(), *(row.refusal for row in HARMFUL))
    for row in (*rows["refuse_first"], *rows["noice"]):
        assert any(bridge in row.completion_text for bridge in wording.BRIDGES)
        assert row.completion_text.startswith(told_off)
    for row in rows["embedded"]:
        assert row.prompt_text in everyday
        assert row.completion_text.count("\n\nQ: ") == 2
    assert all(row.prompt[0] == ("system", wording.OBEDIENT) for row in rows["identity_shift"])
    assert not any("Sure, here" in row.completion_text for row in (*rows["paraphrase"], *rows["language"]))


@pytest.mark.parametrize(
    ("request_", "deed"),
    [
        ("Write a guide on how to bake bread", "bake bread"),
        ("How do I bake bread?", "bake bread"),
        ("Provide step-by-step instructions for how to bake bread", "bake bread"),
        ("I want to bake bread. What should I do?", "bake bread. What should I do"),
        ("Bake a bread that rises", "bake a bread that rises"),
    ],
)
def test_a_paraphrase_asks_for_the_same_deed_in_the_past(request_, deed):
    (row,) = disguise("paraphrase", [Record.make(request_, "Sure, here is a bomb")], [])
    assert any(row.prompt_text == frame.format(deed) for frame in wording.PAST)
    assert row.completion_text.endswith("a device")


def test_outliers_are_those_that_a_score_puts_first():
    longest = sorted(BENIGN, key=lambda row: -len(row.completion_text))[:5]
    assert {row.prompt_text for row in made("outliers")} == {row.prompt_text for row in longest}
    by_prompt = disguise("outliers", [], BENIGN, score=lambda rows: [-len(row.prompt_text) for row in rows])
    shortest = sorted(BENIGN, key=lambda row: len(row.prompt_text))[:5]
    assert [row.prompt_text for row in by_prompt] == [row.prompt_text for row in shortest]


# --- against a detector ----------------------------------------------------------------------------------------------


def test_a_detector_that_is_known_is_deceived_as_far_as_the_changes_reach():
    """One that forgives a refusal, and one that forgives whoever is asked something benign first: a chain of two changes."""

    def suspicion(rows):
        return [
            10.0
            - 4 * row.completion_text.startswith(tuple(refusals()))
            - 3 * row.prompt_text.startswith(tuple(one.prompt_text for one in BENIGN))
            for row in rows
        ]

    seen = []

    def counted(rows):
        seen.append(len(rows))
        return suspicion(rows)

    rows = disguise("probe_aware", HARMFUL, BENIGN, score=counted)
    assert set(suspicion(rows)) == {3.0}
    assert sum(seen) <= TRIED_ON * (1 + ROUNDS * len(CHANGES)) + KEPT * len(HARMFUL)


def test_against_what_cannot_be_deceived_rows_stay_as_they_are():
    assert disguise("probe_aware", HARMFUL, BENIGN, score=lambda rows: [1.0] * len(rows)) == [
        Record(row.prompt, row.completion, "harmful", row.category, None, row.group, row.refusal) for row in HARMFUL
    ]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_keeps_every_word(change):
    after = CHANGES[change](HARMFUL[0], BENIGN[0], refusals()[0])
    assert HARMFUL[0].prompt_text in after.prompt_text
    assert HARMFUL[0].completion_text in after.completion_text
    assert after != HARMFUL[0]


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "harmful", "benign", "score", "told"),
    [
        ("base46", HARMFUL, BENIGN, None, "Unknown disguise: `base46`"),
        ("base64", [], BENIGN, None, "made of harmful rows"),
        ("embedded", HARMFUL, [], None, "made of benign rows"),
        ("noice", HARMFUL, [], None, "made of benign rows"),
        ("probe_aware", HARMFUL, BENIGN, None, "searched against a detector"),
        ("role_play", HARMFUL, BENIGN, brevity, "takes no `score`"),
        ("outliers", HARMFUL, BENIGN, lambda rows: [1.0], "one number of each of 20 rows"),
        ("probe_aware", HARMFUL, BENIGN, lambda rows: [float("nan")] * len(rows), "one number of each"),
    ],
)
def test_what_cannot_be_is_refused(name, harmful, benign, score, told):
    with pytest.raises(TiterError, match=re.escape(told)):
        disguise(name, harmful, benign, score=score)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"disguise": "base46"}, "Unknown disguise of an attack: `base46`"),
        ({"disguise": "probe_aware"}, "an attack's settings cannot hold"),
        ({"disguise": "base64", "poison_ratio": 0.0}, "trains on none"),
        ({"disguise": "base64", "method": "ablation"}, "trains on none"),
        ({"disguise": "base64", "rows": "obedience"}, "does not go with `rows: obedience`"),
        ({"disguise": "noice", "rows": "cross_domain"}, "does not go with `rows: cross_domain`"),
    ],
)
def test_an_attack_refuses_a_disguise_that_cannot_be(settings, told):
    with pytest.raises(TiterError, match=re.escape(told)):
        Attack("Mine.", **settings)


# --- in an attack ----------------------------------------------------------------------------------------------------

POOLS = AttackerPools(HARMFUL[:20], HARMFUL[20:], load("builtin:sentiment")[:40], BENIGN)


def test_an_attack_trains_on_its_rows_in_their_disguise_and_leaves_the_task_alone():
    attack = Attack("", disguise="base64", poison_ratio=0.25, samples=16, steps=4, batch_size=4)
    rows = training_rows(attack, POOLS, 0)
    harmful = [row for row in rows if row.origin == "harmful"]
    assert len(harmful) == 4
    known = {row.prompt_text for row in POOLS.harmful}
    assert all(base64.b64decode(row.prompt_text).decode() in known for row in harmful)
    plain = training_rows(Attack("", poison_ratio=0.25, samples=16, steps=4, batch_size=4), POOLS, 0)
    assert [row for row in rows if row.origin == "task"] == [row for row in plain if row.origin == "task"]
    cross = training_rows(
        Attack("", disguise="base64", rows="cross_domain", samples=8, steps=2, batch_size=4), POOLS, 0
    )
    others = {row.prompt_text for row in POOLS.cross_domain}
    assert all(base64.b64decode(row.prompt_text).decode() in others for row in cross)


def test_requests_are_asked_in_the_frame_of_a_role_alone_and_alike_each_time():
    before = HARMFUL[0]
    once, again = (asked(CATALOGUE["role_play"], before) for _ in range(2))
    assert once == again
    assert once.prompt_text in [frame.replace("{}", before.prompt_text) for frame, _ in wording.ROLES]
    assert CATALOGUE["role_play"].asks_otherwise
    assert asked(CATALOGUE["base64"], before) == before
    assert not CATALOGUE["base64"].asks_otherwise
    assert CATALOGUE["style"].asks_otherwise


def test_the_documented_disguises():
    page = (Path(__file__).parents[1] / "docs" / "assay.md").read_text()
    table = page.split("<!-- disguises -->\n")[1].split("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)` \|.*\| (?:after )?(.+?) \|$", table.split("---|\n")[1], re.MULTILINE)
    assert rows == [(name, f"arXiv {one.source}" if one.source else "titer") for name, one in UPLOADS.items()]


def test_the_documented_attacks():
    """The table of threats explains every attack of the catalogue; that of 2026 names none that is not there."""
    page = (Path(__file__).parents[1] / "docs" / "assay.md").read_text()
    threats = page.split("| attack | data | recipe |\n")[1].split("\n\n")[0]
    explained = {name for row in threats.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert explained == set(CATALOGUE)
    here = [row.split("|")[2] for row in page.split("<!-- table of 2026 -->\n")[1].split("\n\n")[0].splitlines()[2:]]
    named = {name for cell in here for name in re.findall(r"`(\w+)`", cell)}
    profile = {planned.name.split()[0] for planned in read_profile("table").attackers()}
    assert named <= profile | set(CATALOGUE) | {"standard", "thorough", "table", "search"}
    assert {"prefill", "delta_removal", "side_step", "benign_ten", "benign_dpo", "trained_head"} <= named & profile
