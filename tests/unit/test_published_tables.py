"""Tables of several forms as series: what is read, what is left out and why."""

from benchmarks.published_tables import read_folder, read_single_device

HEADER = "gpus,nodes,batch_per_gpu,grad_accum,throughput,heading\n"


def test_the_board_of_a_heading_is_the_series_device(tmp_path):
    rows = [f"{gpus},{gpus // 8},32,1,{100 * gpus},Results / DGX A100 (8x A100 80GB)" for gpus in (8, 16)]
    (tmp_path / "bert.csv").write_text(HEADER + "\n".join(rows) + "\n")
    (series,) = read_folder(tmp_path)["bert"]
    assert series.device == "A100 80GB"
    assert [one.layout.nodes for one in series.measured] == [1, 2]


def test_what_is_left_out_is_said(tmp_path):
    (tmp_path / "other.csv").write_text("size_bytes,busbw\n8,0.1\n")
    (tmp_path / "empty.csv").write_text("gpus\n")
    rows = ["8,1,32,1,800,,a", "16,2,32,1,1600,,a", "8,1,64,1,900,,b"]
    (tmp_path / "mixed.csv").write_text(HEADER.replace("heading", "heading,model") + "\n".join(rows) + "\n")
    left_out: list[str] = []
    read_folder(tmp_path, left_out)
    told = "\n".join(left_out)
    assert "other.csv: no series of two world sizes (0 of one); columns are size_bytes, busbw" in told
    assert "empty.csv: no rows" in told
    assert "mixed.csv: 1 of 2 series have one world size" in told


def test_timm_tables_are_single_gpu_series_of_plain_vits(tmp_path):
    (tmp_path / "timm.csv").write_text(
        "model,train_samples_per_sec,train_batch_size,train_img_size,torch,gpu\n"
        "vit_base_patch16_224_sam,390,192,224,1.12,RTX 3090\nresnet50,800,256,224,1.12,RTX 3090\n"
    )
    (series,) = read_single_device(tmp_path)["timm"]
    assert (series.model, series.device, series.knobs) == ("vit_base_patch16_224", "RTX 3090", {"sdpa": "math"})
    assert series.measured[0].step_s == 192 / 390
