"""What is not what was measured does not count."""

from vitscale.analysis.analyse import analyse


def test_a_run_whose_records_were_altered_is_not_valid(make, tmp_path):
    make.write_study(tmp_path)
    for launch in range(3):
        for size in (1, 2):
            make.write_launch(tmp_path, make.make_spec(size), launch, 0.1 / size)
    path = next(tmp_path.glob("runs/*w2*/launch1/steps.rank000.jsonl"))
    path.write_text(path.read_text().replace('"step_s":0.05', '"step_s":0.005'))
    result = analyse(tmp_path).analysis
    one, two = result.runs
    assert one.valid
    assert not two.valid
    assert "sha256" in two.invalid_reasons[0]
    assert "as fast" not in result.answer
