import json

import pytest

from vitscale.config.load import load
from vitscale.errors import UsageError


@pytest.fixture
def given(written, tmp_path):
    """Load a study whose `[deepspeed]` is a file with this text."""

    def load_with(text, *overrides):
        (tmp_path / "ds.json").write_text(text, encoding="utf-8")
        return load(written('[deepspeed]\nfile = "ds.json"\n'), overrides)

    return load_with


@pytest.fixture
def refused(given):
    def message_of(text, *overrides):
        with pytest.raises(UsageError) as caught:
            given(text, *overrides)
        assert "\n" not in caught.value.message
        return caught.value

    return message_of


def test_the_dialect_is_deepspeeds_own(given):
    text = """\ufeff{
        // a comment
        "train_batch_size": 64,  # another
        /* and one more */
        "gradient_clipping": 0.5,
        zero_optimization: {
            overlap_comm: false
            reduce_bucket_size: 1000000,
        },
    }"""
    loaded = given(text)
    assert loaded.study.optimizer.clip == 0.5
    assert loaded.study.deepspeed == {"zero_optimization": {"overlap_comm": False, "reduce_bucket_size": 1000000}}


@pytest.mark.parametrize(
    ("name", "size", "wanted"),
    [
        ("reduce_bucket_size", "0", "is 0, not a whole number, 1 or more"),
        ("reduce_bucket_size", "-5", "is -5, not"),
        ("allgather_bucket_size", "0.5", "is 0.5, not"),
        ("reduce_bucket_size", '"big"', "is big, not"),
        ("reduce_bucket_size", "true", "is True, not"),
        ("stage3_param_persistence_threshold", "-1", "is -1, not a whole number, 0 or more"),
    ],
)
def test_a_bucket_of_nothing_is_refused(given, refused, name, size, wanted):
    assert wanted in refused(f'{{"zero_optimization": {{"{name}": {size}}}}}').message
    sizes = {"reduce_bucket_size": 5e8, "stage3_param_persistence_threshold": 0}
    assert given(json.dumps({"zero_optimization": sizes})).study.deepspeed == {"zero_optimization": sizes}


@pytest.mark.parametrize(
    ("key", "complaint", "hint"),
    [
        ('"cpu_offload": true', "`zero_optimization.cpu_offload` in", "zero_optimization.offload_optimizer.device"),
        ('"offload_optimizer": {"device": "gpu"}', "is 'gpu', not one of none, cpu, nvme", None),
        ('"offload_param": {"device": 1}', "is 1, not one of none, cpu, nvme", None),
    ],
)
def test_offloading_to_nowhere_is_refused(refused, key, complaint, hint):
    error = refused(f'{{"zero_optimization": {{"stage": 1, {key}}}}}')
    assert complaint in error.message
    assert error.hint == hint


def test_the_file_lies_beside_the_study_wherever_the_command_runs(given, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert given('{"gradient_clipping": 2}').study.optimizer.clip == 2.0


def test_what_both_know_is_adopted_where_the_study_leaves_it_out_and_noted(given):
    text = """{
        "train_micro_batch_size_per_gpu": 8,
        "gradient_accumulation_steps": 2,
        "gradient_clipping": 0.5,
        "zero_optimization": {"stage": 2, "reduce_bucket_size": 1000000},
        "bf16": {"enabled": true},
        "optimizer": {
            "type": "AdamW", "params": {"lr": 0.0003, "weight_decay": 0.1, "betas": [0.9, 0.999], "eps": 1e-8}
        }
    }"""
    loaded = given(text)
    study = loaded.study
    assert (study.axes.micro_batch, study.axes.grad_accum, study.axes.zero_stage) == ((8,), (2,), (2,))
    assert study.axes.precision == ("bf16",)
    assert (study.optimizer.name, study.optimizer.lr, study.optimizer.weight_decay) == ("adamw", 0.0003, 0.1)
    assert study.deepspeed == {"zero_optimization": {"reduce_bucket_size": 1000000}}
    assert "`axes.zero_stage` = 2 from `ds.json` (`zero_optimization.stage`)" in loaded.notes
    assert "`axes.precision` = bf16 from `ds.json` (`bf16.enabled`)" in loaded.notes
    assert loaded.notes[-1].startswith("for DeepSpeed alone, from `ds.json`: ")
    assert len(loaded.notes) == 9


@pytest.mark.parametrize(
    ("text", "overrides"),
    [
        ('{"train_batch_size": 64}', []),
        ('{"zero_optimization": {"stage": 1}}', ["zero_stage=1"]),
        ('{"bfloat16": {"enabled": true}}', ["precision=bf16"]),
        ('{"fp16": {"enabled": false}, "gradient_clipping": null, "wall_clock_breakdown": false}', []),
        ('{"comet": {"enabled": false, "api_key": "secret"}, "elasticity": {"enabled": false}}', []),
    ],
)
def test_saying_the_same_in_both_ways_asks_for_the_same_run(given, written, text, overrides):
    loaded = given(text, *overrides)
    assert loaded.notes == ()
    assert loaded.study == load(written(), overrides).study


@pytest.mark.parametrize(
    ("text", "overrides", "theirs", "mine"),
    [
        ('{"train_batch_size": 128}', [], "`train_batch_size` = 128", "`axes.global_batch` = 64"),
        ('{"zero_optimization": {"stage": 2}}', ["zero_stage=0,1"], "stage` = 2", "`axes.zero_stage` = [0, 1]"),
        ('{"bf16": {"enabled": true}}', ["precision=fp32"], "`bf16.enabled` = bf16", "`axes.precision` = fp32"),
        ('{"bf16": {"enabled": false}}', ["precision=bf16,fp32"], "`bf16.enabled` = false", "['bf16', 'fp32']"),
        ('{"gradient_clipping": 1}', ["clip=0.5"], "`gradient_clipping` = 1", "`optimizer.clip` = 0.5"),
        ('{"optimizer": {"params": {"lr": 0.5}}}', ["lr=0.1,0.2"], "lr` = 0.5", "`optimizer.lr` = [0.1, 0.2]"),
    ],
)
def test_a_disagreement_names_both_values(refused, text, overrides, theirs, mine):
    error = refused(text, *overrides)
    assert theirs in error.message
    assert mine in error.message
    assert error.hint == "remove one of the two"


def test_all_disagreements_are_told_at_once(refused):
    message = refused('{"train_batch_size": 1, "gradient_clipping": 9}', "clip=1").message
    assert "`train_batch_size` = 1" in message
    assert "`gradient_clipping` = 9" in message


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"gradient_clipping": 1, "gradient_clipping": 2}', "`gradient_clipping` is given twice"),
        ('{"zero_optimization": {"stage": 1, "stage": 2}}', "`stage` is given twice"),
        ('{\n"train_batch_size": 64,\n"x: }', "line 3"),
        ("{", "line 1"),
        ("[1, 2]", "holds a list"),
        ("[" * 100_000, "cannot be read"),
        ('{"gradient_clipping": ' + "9" * 5000 + "}", "`ds.json`"),
        ('{\n"prescale_gradients": True,\n}', "`True,`, which is a word"),
        ('{\n"zero_optimization": {\n"overlap_comm": False\n}\n}', "`zero_optimization.overlap_comm`"),
        ('{"zero_optimization": {\n"offload_param": {\n"device": cpu,\n}}}', "put it in quotes"),
        ('{"train_batch_size": "auto"}', "`auto`, which is Hugging Face's"),
        ('{"zero_optimization": {"reduce_bucket_size": "auto"}}', "`auto`, which is Hugging Face's"),
        ('{"fp16": {"enabled": "true"}}', "'true', not true or false"),
        ('{"bf16": {"enabled": true}, "fp16": {"enabled": true}}', "both enabled"),
        ('{"bf16": {"enabled": true}, "bfloat16": {"enabled": true}}', "the same DeepSpeed key"),
        ('{"bf16": true}', "not a table"),
        ('{"zero_optimization": true}', "not a table"),
        ('{"optimizer": "AdamW"}', "not a table"),
        ('{"optimizer": {"type": "AdamW", "params": 3}}', "not a table"),
        ('{"optimizer": {"type": "AdamW", "params": {"betas": [0.9, 0.95]}}}', "`betas` = [0.9, 0.95]"),
        ('{"optimizer": {"type": "OneBitAdam"}}', "`OneBitAdam` is not one of adamw, sgd"),
        ('{"train_batch_size": [64, 128]}', "not one value"),
        ('{"gradient_clipping": -1}', "`optimizer.clip` = -1"),
        ('{"gradient_clipping": "1"}', "`optimizer.clip` = '1'"),
        ('{"zero_optimization": {"stage": 7}}', "`axes.zero_stage` = 7"),
        ('{"a\\nb": 1}', "unknown key `a\\nb`"),
    ],
)
def test_a_document_that_does_not_mean_what_it_says_is_refused(refused, text, complaint):
    assert complaint in refused(text).message


@pytest.mark.parametrize(
    ("text", "key", "nearest"),
    [
        ('{"micro_batch_per_gpu": 4}', "micro_batch_per_gpu", "`train_micro_batch_size_per_gpu`"),
        ('{"zero_optimisation": {"stage": 1}}', "zero_optimisation", "`zero_optimization`"),
        ('{"zero_optimization": {"overlap_com": true}}', "overlap_com", "`overlap_comm`"),
        ('{"zero_optimization": {"offload_param": {"devise": "cpu"}}}', "devise", "`device`"),
        ('{"bfloat16": {"enable": true}}', "enable", "`enabled`"),
        ('{"optimizer": {"typ": "AdamW"}}', "typ", "`type`"),
    ],
)
def test_a_key_that_deepspeed_never_reads_is_refused_with_the_nearest_one(refused, text, key, nearest):
    error = refused(text)
    assert f"unknown key `{key}`" in error.message
    assert nearest in error.hint


@pytest.mark.parametrize(("kind", "told"), [("Adam", "`AdamW`"), ("Muon", "another update than DeepSpeed's")])
def test_an_optimizer_is_told_how_deepspeed_means_it(refused, kind, told):
    assert told in refused(f'{{"optimizer": {{"type": "{kind}"}}}}').hint


@pytest.mark.parametrize(
    "text",
    [
        '{"wall_clock_breakdown": true}',
        '{"scheduler": {"type": "WarmupLR"}}',
        '{"elasticity": {"enabled": true}}',
        '{"autotuning": {"enabled": true}}',
        '{"flops_profiler": {"enabled": true}}',
        '{"comms_logger": {"enabled": true}}',
        '{"comet": {"api_key": "secret"}}',
        '{"tensorboard": {"enabled": true}}',
        '{"tensor_parallel": {"autotp_size": 2}}',
        '{"torch_autocast": {"enabled": true}}',
    ],
)
def test_what_would_falsify_a_measurement_is_refused_with_its_reason(refused, text):
    message = refused(text).message
    assert "cannot be used here: " in message
    assert "secret" not in message


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('file = "absent.json"', "cannot read DeepSpeed file"),
        ('file = "."', "cannot read DeepSpeed file"),
        ('file = "a\\u0000b"', "cannot read DeepSpeed file"),
        ('file = "a\\nb"', "a\\nb"),
        ("file = 3", "`deepspeed.file` = 3"),
        ('file = "~nobody_at_all/ds.json"', "`deepspeed.file` = "),
        ('file = "ds.json"\nsteps_per_print = 1', "has `file` and also `steps_per_print`"),
        ("steps_per_print = 2026-01-01", "not a JSON value"),
        ("steps_per_print = nan", "not a finite number"),
        ('"zero_optimization.stage" = 2', "unknown key `zero_optimization.stage`"),
    ],
)
def test_a_table_in_the_study_is_checked_as_a_file_is(written, line, complaint):
    with pytest.raises(UsageError) as caught:
        load(written(f"[deepspeed]\n{line}\n"))
    assert complaint in caught.value.message
    assert "\n" not in caught.value.message


def test_keys_from_the_command_line_are_merged_and_checked_likewise(written):
    loaded = load(written(), ["deepspeed.zero_optimization.stage=2", "deepspeed.bf16.enabled=true"])
    assert (loaded.study.axes.zero_stage, loaded.study.axes.precision) == ((2,), ("bf16",))
    assert loaded.study.deepspeed == {}
    with pytest.raises(UsageError, match="disagree"):
        load(written(), ["deepspeed.zero_optimization.stage=2", "zero_stage=1"])


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("deepspeed.zero_optimization.stage=0,1", "the study has it as `axes.zero_stage`"),
        ("deepspeed.fp16.enabled=true,false", "the study has it as `axes.precision`"),
        ("deepspeed.file=a.json,b.json", "`deepspeed.file` cannot vary"),
        ("deepspeed.zero_optimization.overlap_com=true,false", "unknown key `overlap_com`"),
        ("deepspeed.wall_clock_breakdown=true,false", "cannot be used here"),
    ],
)
def test_a_deepspeed_key_that_varies_is_checked_for_every_value(written, override, complaint):
    with pytest.raises(UsageError) as caught:
        load(written(), [override])
    assert complaint in caught.value.message
