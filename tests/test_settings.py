"""Settings, as they are typed: read as what they look like, refused before anything is done, and told with the way out."""

import pytest
import yaml

from titer.errors import TiterError


def write(path, **values):
    path.write_text(yaml.safe_dump(values))
    return path


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.e-4", "1.0e-4", ".1e-3", "10e-5", "+1e-4", "0.0001"])
def test_a_number_in_any_spelling_is_a_number(tmp_path, text):
    from titer.experiment import read_experiment
    from titer.settings import parse_setting

    assert parse_setting(f"learning_rate={text}") == ("learning_rate", 1e-4)
    assert parse_setting(f"a=[{text}, -{text.lstrip('+')}]") == ("a", [1e-4, -1e-4])
    file = tmp_path / "e.yaml"
    file.write_text(f"name: x\narms: {{a: {{align: sft, finetune: sft, align_settings: {{learning_rate: {text}}}}}}}\n")
    assert read_experiment(file).arms["a"].align_settings == {"learning_rate": 1e-4}


@pytest.mark.parametrize("text", ["'1e-4'", '"1e-4"', "1e", "e-4", "1e-4x", "1e-", "1-4", "fast", "1e-4 5", "0x1p-4"])
def test_text_in_the_place_of_a_number_is_an_error(tmp_path, text):
    from titer import methods
    from titer.settings import parse_setting

    _, value = parse_setting(f"learning_rate={text}")
    assert isinstance(value, str)
    with pytest.raises(TiterError, match="learning_rate` must be a number from 0 to 1000, found"):
        methods.settings(methods.find("align", "sft"), {"learning_rate": value}, "--set", "unused", 0)


def test_a_number_in_the_place_of_text_is_an_error(tmp_path):
    from titer.experiment import read_experiment

    file = tmp_path / "e.yaml"
    file.write_text("name: 1e5\narms: {a: {align: sft, finetune: sft}}\n")
    with pytest.raises(TiterError, match=r"`experiment\.name` must be text, found `100000\.0`") as error:
        read_experiment(file)
    assert "quotes" in error.value.hint
