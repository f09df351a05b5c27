import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitscale.config.keys import leaf_paths
from vitscale.config.load import load
from vitscale.config.overrides import apply_overrides, parse_value
from vitscale.errors import UsageError

numbers = st.integers(-(10**12), 10**12) | st.floats(allow_nan=False, allow_infinity=False) | st.booleans()
# Words as a shell passes them on: no quotes, brackets, commas or `#`, and nothing that TOML reads as another kind.
words = st.from_regex(r"[a-z][a-z0-9_./-]{0,20}", fullmatch=True).filter(
    lambda word: word not in ("true", "false", "inf", "nan")
)


def toml(value):
    return json.dumps(value) if not isinstance(value, float) else repr(value)


def refused(path, *overrides):
    with pytest.raises(UsageError) as caught:
        load(path, overrides)
    assert "\n" not in caught.value.message
    return caught.value


@given(value=numbers | words)
def test_a_number_a_boolean_and_a_word_are_read_back_as_written(value):
    read = parse_value(value if isinstance(value, str) else toml(value), "")
    assert read == value
    assert type(read) is type(value)


@given(value=st.text(st.characters(codec="utf-8", exclude_characters="\x7f"), max_size=30))
def test_a_quoted_string_is_read_back_whatever_is_in_it(value):
    assert parse_value(json.dumps(value, ensure_ascii=False), "") == value


@given(values=st.lists(numbers | words, min_size=2, max_size=5))
def test_commas_and_brackets_both_make_a_list(values):
    bare = ",".join(value if isinstance(value, str) else toml(value) for value in values)
    assert parse_value(bare, "") == values
    assert parse_value(f"[{', '.join(toml(value) for value in values)}]", "") == values


@given(text=st.text(max_size=40))
def test_no_text_ends_in_a_traceback(text):
    try:
        parse_value(text, text)
    except UsageError:
        return


@pytest.mark.parametrize(("text", "value"), [(".5", 0.5), ("True", True), ("2026-11-24", "2026-11-24"), ("1e-3", 1e-3)])
def test_what_toml_reads_otherwise_is_read_as_a_shell_user_means_it(text, value):
    assert parse_value(text, "") == value


def test_world_sizes_are_a_list(written):
    assert load(written(), ["world_size=1,2,4"]).study.axes.world_size == (1, 2, 4)
    assert load(written(), ["world_size=[1, 2, 4]"]).study.axes.world_size == (1, 2, 4)
    assert load(written(), ["world_size=4"]).study.axes.world_size == (4,)


def test_a_protocol_is_taken_from_the_command_line(written):
    study = load(written(), ["protocol=weak,strong", "micro_batch=8"]).study
    assert study.protocol == ("weak", "strong")
    assert study.axes.micro_batch == (8,)


@pytest.mark.parametrize("path", [path for path in leaf_paths() if "." in path])
def test_every_key_is_reached_by_its_dotted_path(path):
    tree = {}
    apply_overrides(tree, [f"{path}=word"])
    table, _, key = path.partition(".")
    assert tree == {table: {key: "word"}}


def test_a_last_name_is_enough_where_only_one_key_has_it(written):
    study = load(written(), ["seconds=5", "lr=0.5", "patch_size=4"]).study
    assert (study.measure.seconds, study.optimizer.lr, study.model.patch_size) == (5.0, 0.5, 4)


def test_a_last_name_that_is_also_a_key_of_the_study_is_the_studys(written):
    study = load(written(), ["name=other"]).study
    assert (study.name, study.model.name) == ("other", "vit_tiny_patch16_224")


def test_a_last_name_that_several_keys_share_is_refused_with_all_of_them(monkeypatch):
    from vitscale.config import keys

    monkeypatch.setattr(keys, "leaf_paths", lambda: ("axes.depth", "model.depth"))
    with pytest.raises(UsageError, match=r"`depth` could be any of `axes\.depth` and `model\.depth`") as caught:
        keys.full_path("depth")
    assert caught.value.hint == "write the dotted path"


def test_a_list_for_a_key_that_is_no_axis_makes_it_one(written):
    study = load(written(), ["model.name=vit_tiny_patch16_224,vit_small_patch16_224", "flip=true,false"]).study
    assert study.axes.swept["model.name"] == ("vit_tiny_patch16_224", "vit_small_patch16_224")
    assert study.axes.swept["data.flip"] == (True, False)


def test_an_override_replaces_what_the_file_lets_vary(written):
    more = '"optimizer.lr" = [0.1, 0.2]\n'
    assert load(written(more), ["lr=0.3,0.4"]).study.axes.swept == {"optimizer.lr": (0.3, 0.4)}
    one = load(written(more), ["lr=0.5"]).study
    assert (one.optimizer.lr, one.axes.swept) == (0.5, {})


@pytest.mark.parametrize(("words", "lr", "swept"), [
    (["lr=0.1", "lr=0.2"], 0.2, {}),
    (["lr=0.1,0.2", "optimizer.lr=0.3"], 0.3, {}),
    (["lr=0.3", "lr=0.1,0.2"], 0.3, {"optimizer.lr": (0.1, 0.2)}),
])  # fmt: skip
def test_of_two_words_for_one_key_the_last_counts_and_it_is_said(written, words, lr, swept):
    loaded = load(written(), words)
    assert (loaded.study.optimizer.lr, loaded.study.axes.swept) == (lr, swept)
    assert loaded.notes == (f"`optimizer.lr` is given twice: `{words[1]}` counts, not `{words[0]}`",)


def test_deepspeeds_own_keys_vary_with_commas_and_hold_a_list_in_brackets(written):
    swept = load(written(), ["deepspeed.zero_optimization.overlap_comm=true,false"]).study
    assert swept.axes.swept == {"deepspeed.zero_optimization.overlap_comm": (True, False)}
    held = load(written(), ["deepspeed.activation_checkpointing.layers=[1, 2]"]).study
    assert held.deepspeed == {"activation_checkpointing": {"layers": [1, 2]}}


def test_a_comma_in_prose_is_a_comma(written):
    assert load(written(), ["question=Faster, or not?"]).study.question == "Faster, or not?"


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["world_size"], "`world_size` is not an override"),
        (["=2"], "`=2` is not an override"),
        ([""], "is not an override"),
        (["world_size="], "`world_size=` has no value"),
        (["world_size=1,"], "`world_size=1,` has no value"),
        (["world_size=1,,2"], "`world_size=1,,2` has no value"),
        (["wrold_size=1"], "unknown key `wrold_size`"),
        (["measure=3"], "unknown key `measure`"),
        (["axes.swept=3"], "unknown key `axes.swept`"),
        (["launches=1,2"], "`measure.launches` cannot vary"),
        (["deepspeed=3"], "`deepspeed`"),
        (["world_size=[]"], "an empty list"),
        (["world_size='2'"], "`axes.world_size` = '2'"),
        (["world_size=" + "9" * 5000], "`axes.world_size` = inf"),
        (["world_size=1\n2"], "`axes.world_size` = '1\\n2'"),
        (["wor\nld=1"], "unknown key `wor\\nld`"),
        (["lr=nan"], "`optimizer.lr` = nan"),
        (["name=\udcff"], "`name` = '\\udcff'"),
    ],
)
def test_an_override_that_cannot_be_meant_is_refused(written, overrides, complaint):
    assert complaint in refused(written(), *overrides).message


def test_a_misspelt_override_gets_the_key_it_meant(written):
    assert refused(written(), "wrold_size=1").hint == "did you mean `axes.world_size`?"


def test_a_split_in_brackets_is_a_list_by_rank_and_with_commas_it_varies():
    tree = {}
    apply_overrides(tree, ["engine.split=[40, 24]"])
    assert tree["engine"]["split"] == [40, 24]
    apply_overrides(tree, ["engine.split=even,proportional"])
    assert tree["axes"]["swept"] == {"engine.split": ["even", "proportional"]}
