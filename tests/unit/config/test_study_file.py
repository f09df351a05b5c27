import pytest

from vitscale.config.load import load
from vitscale.config.study import Axes, MeasureSection
from vitscale.errors import UsageError


def refused(path, *overrides):
    with pytest.raises(UsageError) as caught:
        load(path, overrides)
    assert "\n" not in caught.value.message
    assert "pydantic" not in caught.value.message
    return caught.value


def test_the_smallest_study_takes_every_other_value_from_the_defaults(written):
    study = load(written()).study
    assert study.protocol == ("strong",)
    assert study.axes == Axes(world_size=(1, 2), global_batch=(64,))
    assert (study.axes.zero_stage, study.axes.precision, study.axes.device) == ((0,), ("fp32",), ("auto",))
    assert study.measure == MeasureSection(launches=3, warmup_steps=3)
    assert (study.optimizer.name, study.optimizer.clip) == ("adamw", 1.0)
    assert study.deepspeed == {}


def test_the_text_of_a_study_is_kept_as_written_whatever_its_line_ends_and_mark(written, tmp_path):
    text = (tmp_path / "mine.toml").read_text() if written() else ""
    (tmp_path / "mine.toml").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    loaded = load(str(tmp_path / "mine.toml"))
    assert loaded.text == text
    assert loaded.study.name == "mine"


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("world_size", "0", "greater than 0"),
        ("world_size", "-2", "greater than 0"),
        ("world_size", "[2, 0]", "greater than 0"),
        ("world_size", "[]", "an empty list"),
        ("world_size", "[2, 2]", "the same value twice"),
        ("world_size", '"two"', "valid integer"),
        ("world_size", '"2"', "valid integer"),
        ("world_size", "true", "valid integer"),
        ("world_size", "2.0", "valid integer"),
        ("world_size", "nan", "valid integer"),
        ("world_size", "1e400", "valid integer"),
        ("world_size", "[[2]]", "valid integer"),
        ("world_size", "{ a = 1 }", "valid integer"),
        ("zero_stage", "7", "0, 1, 2 or 3"),
        ("zero_stage", "true", "not a boolean"),
        ("zero_stage", "[1, 1.0]", "the same value twice"),
        ("precision", '"fp64"', "'fp32', 'bf16', 'fp16' or 'bf16_autocast'"),
        ("engine", '"horovod"', "'deepspeed'"),
        ("device", '"tpu"', "'auto', 'cpu' or 'cuda'"),
        ("nodes", "0", "greater than 0"),
        ("global_batch", "0", "greater than 0"),
        ("micro_batch", "-1", "greater than 0"),
        ("grad_accum", "1.5", "valid integer"),
    ],
)
def test_a_value_an_axis_can_never_have_is_refused_by_name_and_value(written, key, value, complaint):
    lines = {"world_size": "world_size = [1, 2]\n", "global_batch": "global_batch = 64\n"}
    old = lines.get(key, "global_batch = 64\n")
    path = written(replacing=(old, f"{key} = {value}\n" if key in lines else f"{old}{key} = {value}\n"))
    message = refused(path).message
    assert f"`axes.{key}` = " in message
    assert complaint in message


@pytest.mark.parametrize(
    ("table", "line", "named"),
    [
        ("optimizer", "lr = 0", "`optimizer.lr` = 0"),
        ("optimizer", "lr = nan", "`optimizer.lr` = nan"),
        ("optimizer", "lr = inf", "`optimizer.lr` = inf"),
        ("optimizer", "lr = true", "`optimizer.lr` = True"),
        ("optimizer", 'lr = "0.1"', "`optimizer.lr` = '0.1'"),
        ("optimizer", "momentum = 1.0", "`optimizer.momentum` = 1.0"),
        ("optimizer", 'name = "rmsprop"', "`optimizer.name` = 'rmsprop'"),
        ("measure", "launches = 0", "`measure.launches` = 0"),
        ("measure", "launches = 1000000000000000000000", "`measure.launches` = 1000000000000000000000"),
        ("measure", "seed = -1", "`measure.seed` = -1"),
        ("measure", "seed = 4294967296", "`measure.seed` = 4294967296"),
        ("measure", "seconds = 0", "`measure.seconds` = 0"),
        ("measure", "steps = 2.5", "`measure.steps` = 2.5"),
        ("measure", "target_interval = 1.0\nbudget_s = 9", "`measure.target_interval` = 1.0"),
        ("measure", "target_interval = 0.05", "target_interval = 0.05 adds launches without end unless budget_s"),
        ("measure", "steps = 5\nseconds = 7", "steps = 5 and seconds = 7 are both given"),
        ("measure", "warmup_steps = 0", "warmup_steps = 0 nothing tells"),
        ("launch", "start_timeout_s = -5", "`launch.start_timeout_s` = -5"),
    ],
)
def test_a_value_another_key_can_never_have_is_refused_by_name_and_value(written, table, line, named):
    message = refused(written(f"[{table}]\n{line}\n")).message
    assert named in message
    assert f"`{table}" in message


NO_NAMES = ["../../x", "/x", "~/x", "..", ".", "a/../b", "a/./b", "a\\u0007b", "a\\nb", "\\u202Ecod", "a\\u2028b"]


@pytest.mark.parametrize("name", [*NO_NAMES, "", "   "])
def test_a_name_that_is_no_name_is_refused(written, name):
    assert "`name` = " in refused(written(replacing=('name = "mine"', f'name = "{name}"'))).message


@pytest.mark.parametrize("name", ["quick", "paper/fig06_cpu", "ViT-B, 2 nodes", "Größe"])
def test_a_readable_name_is_taken(written, name):
    assert load(written(replacing=('name = "mine"', f'name = "{name}"'))).study.name == name


def test_a_long_name_is_refused_in_a_short_message(written):
    message = refused(written(replacing=('name = "mine"', f'name = "{"x" * 5000}"'))).message
    assert "120 characters" in message
    assert len(message) < 400


def test_text_that_would_steer_a_terminal_is_refused(written):
    question = 'name = "mine"\nquestion = "\\u001b[31mred"'
    assert "`question` = '\\x1b[31mred'" in refused(written(replacing=('name = "mine"', question))).message


@pytest.mark.parametrize("version", ["2", "0", '"1"'])
def test_another_schema_version_is_refused(written, version):
    path = written(replacing=("schema_version = 1", f"schema_version = {version}"))
    assert "`schema_version` = " in refused(path).message


@pytest.mark.parametrize(
    ("more", "key", "nearest"),
    [
        ("zero_stages = 1\n", "zero_stages", "`axes.zero_stage`"),
        ('"model.nme" = ["a"]\n', "model.nme", "`model.name`"),
        ("[measure]\nwarm_up_steps = 1\n", "measure.warm_up_steps", "`measure.warmup_steps`"),
        ("[optimiser]\nlr = 1\n", "optimiser", "`optimizer."),
        ("[axes.swept]\nx = 1\n", "swept", "dotted path"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_that_exists(written, more, key, nearest):
    error = refused(written(more))
    assert f"unknown key `{key}`" in error.message
    assert nearest in error.hint


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('[model]\nname = "vit_tiny_patch16_224"\n', "", "has no `model`"),
        ('name = "mine"\n', "", "has no `name`"),
        ("schema_version", "axes = 3\nschema_version", "not TOML"),
        ('[model]\nname = "vit_tiny_patch16_224"\n', '[model]\nname = ["a", "b"]\n', "`model.name` = ['a', 'b']"),
        ('name = "vit_tiny_patch16_224"\n', "name = 5\n", "`model.name` = 5"),
    ],
)
def test_a_missing_key_or_table_is_named(written, old, new, complaint):
    assert complaint in refused(written(replacing=(old, new))).message


@pytest.mark.parametrize("overrides", [[], ["world_size=2"], ["model.name=a,b"], ["lr=0.1"]])
@pytest.mark.parametrize("value", ["3", '"x"', "[1]"])
def test_a_value_where_a_table_belongs_is_refused_with_and_without_overrides(tmp_path, value, overrides):
    path = tmp_path / "flat.toml"
    path.write_text(f'axes = {value}\nname = "a"\nprotocol = "weak"\nmodel = "x"\n[data]\nname = "digits"\n')
    assert "is a value, not a table" in refused(str(path), *overrides).message


def test_how_many_more_things_are_wrong_is_told(written):
    error = refused(written("[measure]\nlaunches = 0\nseed = -1\n"))
    assert error.hint == "and 1 more to put right"


def test_keys_vary_by_their_dotted_path_quoted_or_not(written):
    study = load(written('"model.name" = ["a", "b"]\noptimizer.lr = [0.1, 0.2]\n"axes.zero_stage" = [0, 1]\n')).study
    assert study.axes.swept == {"model.name": ("a", "b"), "optimizer.lr": (0.1, 0.2)}
    assert study.axes.zero_stage == (0, 1)


def test_a_key_given_twice_in_axes_is_refused_with_both_values(written):
    message = refused(written('zero_stage = 2\n"axes.zero_stage" = [0, 1]\n')).message
    assert "`zero_stage` is given twice" in message
    assert "2 and [0, 1]" in message


@pytest.mark.parametrize("line", ['"optimizer.lr" = []', '"optimizer.lr" = [0.1, 0.1]', '"optimizer.lr" = [0.1, -1]'])
def test_values_that_a_swept_key_can_never_have_are_refused_when_the_study_is_read(written, line):
    assert "`optimizer.lr` = " in refused(written(line + "\n")).message


@pytest.mark.parametrize("key", ["name", "schema_version", "measure.launches", "launch.step_timeout_s", "protocol"])
def test_what_a_study_has_one_of_cannot_vary(written, key):
    assert f"`{key}`" in refused(written(f'"{key}" = [1, 2]\n')).message


def test_broken_toml_is_refused_with_its_line(written):
    assert "line 6" in refused(written(replacing=("[data]", "[data"))).message


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a = " + b"9" * 5000, b"a = " + b"[" * 100_000, b"a = '\x00'"])
def test_what_is_not_a_study_at_all_is_refused_without_a_traceback(tmp_path, content):
    path = tmp_path / "odd.toml"
    path.write_bytes(content)
    assert "study" in refused(str(path)).message


@pytest.mark.parametrize("name", ["no_such", "no_such.toml", "~nobody_at_all/x.toml", "a\nb", "..", ""])
def test_a_study_that_is_nowhere_is_refused(name):
    refused(name)


def test_a_shipped_name_misspelt_is_suggested():
    assert refused("quik").hint == "did you mean `quick`?"
