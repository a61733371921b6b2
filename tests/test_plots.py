"""Pictures of run records: what is drawn, against a plain computation from the curves; and the same bytes each time."""

import math
import re
import statistics

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from plotted import analysis_with, write_run
from processes import ROOT, called

from pycls_std.results import picture_style, plots
from pycls_std.results.plots_of_scores import gain_by_class
from pycls_std.results.read import find_runs
from pycls_std.results.rows import rows_of

SHORT = {"OPTIM__WARMUP_EPOCHS": 0, "OPTIM__SCHEDULE": "constant", "OPTIM__STEPS": "[]", "OPTIM__MAX_EPOCH": 3}
CURVES = {  # of seeds 0 and 1
    "base": [[10.0, 20.0, 30.0], [14.0, 26.0, 31.0]],
    "multi": [[20.0, 30.0, 45.0], [22.0, 33.0, 40.0]],
}


@pytest.fixture
def record(load, tmp_path):
    """Return record(row, seed, values): write a run into tmp_path/logs."""

    def write(row, seed, values, of="mixer/mixer-s4_c100_base", overrides=(), **options):
        cfg = load(of, **(SHORT | dict(overrides)), NAME=row, SEED=seed)
        return write_run(tmp_path / "logs" / row / f"seed{seed}", cfg, values, **options)

    return write


@pytest.fixture
def two_rows(record, tmp_path):
    """Two rows of two seeds, and a run that is not finished."""
    for row, seeds in CURVES.items():
        for seed, top1 in enumerate(seeds):
            losses = {"train/ce": [2.0, 1.5, 1.0], "train/distill": [0.5, 0.4, 0.3], "train/mine": [0.1, -0.2, 0.3]}
            total = {"train/loss": [2.5, 1.9, 1.3], "train/lr": [0.1] * 3, "train/images_per_second": [9.0] * 3}
            total["train/top1"] = [0.0] * 3
            shares = {"train/teacher_weight/0_a": [0.5, 0.4, 0.3], "train/teacher_weight/1_b": [0.5, 0.6, 0.7]}
            per_class = [top1[-1] - 2 * seed, top1[-1] * (1.2 if row == "multi" else 1), 90.0 + seed]
            analysis = analysis_with(per_class, ["cat", "dog", "$x^"])
            values = {"test/top1": top1, **losses, **total, **(shares if row == "multi" else {})}
            if row == "base":
                values.pop("train/mine")
            record(row, seed, values, analysis=analysis, hours=1.0 + seed + (row == "multi"))
    record("base", 2, {"test/top1": [99.0, 99.0]}, done=2, hours=9.0)
    return rows_of(find_runs([str(tmp_path / "logs")]))


def texts(figure):
    """All that is written below the axes, in one line."""
    return " ".join(text.get_text() for text in figure.texts)


def lines_of(axes):
    """The lines of some axes by their colour, as x and y."""
    return {line.get_color(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}


def test_a_line_is_the_mean_over_seeds_and_the_band_their_range(two_rows):
    figure = plots.accuracy(two_rows)
    (axes,) = figure.axes
    lines = lines_of(axes)
    assert len(lines) == 2
    for position, (row, seeds) in enumerate(CURVES.items()):
        x, y = lines[picture_style.COLOURS[position]]
        assert x == [1, 2, 3]
        assert y == pytest.approx([statistics.mean(pair) for pair in zip(*seeds, strict=True)]), row
        corners = axes.collections[position].get_paths()[0].vertices
        for epoch, pair in enumerate(zip(*seeds, strict=True), start=1):
            assert set(corners[corners[:, 0] == epoch][:, 1]) == set(pair)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["base", "multi"]
    assert axes.get_ylabel() == "test top-1 (%)"
    assert "n = 2 seeds; band: lowest to highest" in texts(figure)


def test_what_is_not_finished_is_not_drawn_and_said(two_rows):
    names = set(plots.PICTURES) - {"modes", "weights", "mine"}
    for name in ("accuracy", "losses", "gains", "parameters", "cost"):
        assert "base seed2 (unfinished, epoch 2 of 3)" in texts(plots.PICTURES[name].draw(two_rows, "base")), name
    assert names == {"accuracy", "losses", "gains", "parameters", "cost"}


def test_a_picture_without_values_is_left_out(record, tmp_path):
    record("base", 0, {"test/top1": [1.0, 2.0, 3.0]}, parameters={})
    record("cut", 0, {"test/top1": [1.0, 2.0], "train/mine": [1.0, 1.0]}, done=2)
    rows = rows_of(find_runs([str(tmp_path / "logs")]))
    assert list(plots.draw(rows, baseline="base")) == ["accuracy"]
    assert plots.draw({"cut": rows["cut"]}) == {}


def test_the_held_out_split_has_axes_of_its_own(record, tmp_path):
    record("a", 0, {"test/top1": [1.0, 2.0, 3.0], "val/top1": [4.0, 5.0, 6.0]}, overrides={"DATA__VAL_FRACTION": 0.1})
    record("b", 0, {"test/top1": [2.0, 3.0, 4.0]})
    figure = plots.accuracy(rows_of(find_runs([str(tmp_path / "logs")])))
    assert [axes.get_ylabel() for axes in figure.axes] == ["test top-1 (%)", "held-out top-1 (%)"]
    assert [len(axes.lines) for axes in figure.axes] == [2, 1]
    assert list(figure.axes[1].lines[0].get_ydata()) == [4, 5, 6]


def test_loss_terms_are_those_that_add_up_to_the_loss(two_rows):
    """The estimate of MINE, the teachers' weights and the accuracy are logged beside them, no part of the sum."""
    assert plots.objective(two_rows["multi"]) == ["train/ce", "train/distill"]
    figure = plots.losses(two_rows)
    assert [axes.get_title() for axes in figure.axes] == ["base", "multi"]
    for axes in figure.axes:
        ys = [list(line.get_ydata()) for line in axes.lines]
        assert ys == [pytest.approx([2.0, 1.5, 1.0]), pytest.approx([0.5, 0.4, 0.3])]
        assert np.sum(ys, axis=0) == pytest.approx([2.5, 1.9, 1.3])


def test_weights_of_teachers_and_the_estimate(two_rows):
    (axes,) = plots.weights(two_rows).axes
    assert [list(line.get_ydata()) for line in axes.lines] == [
        pytest.approx([0.5, 0.4, 0.3]),
        pytest.approx([0.5, 0.6, 0.7]),
    ]
    (axes,) = plots.mine(two_rows).axes
    assert [list(line.get_ydata()) for line in axes.lines] == [pytest.approx([0.1, -0.2, 0.3])]


def test_gains_of_classes(two_rows):
    """The mean of the differences of each seed, and the error of that mean."""
    own = [[45.0, 54.0, 90.0], [38.0, 48.0, 91.0]]
    ground = [[30.0, 30.0, 90.0], [29.0, 31.0, 91.0]]
    expected = {}
    for name, after, before in zip(
        ["cat", "dog", "$x^"], zip(*own, strict=True), zip(*ground, strict=True), strict=True
    ):
        found = [a - b for a, b in zip(after, before, strict=True)]
        expected[name] = (statistics.mean(found), statistics.stdev(found) / math.sqrt(2))
    gains = gain_by_class(two_rows["multi"], two_rows["base"])
    assert {name: (gain, error) for name, gain, error in gains} == {n: pytest.approx(e) for n, e in expected.items()}
    assert [name for name, *_ in gains] == ["$x^", "cat", "dog"]
    (axes,) = plots.gains(two_rows, "base").axes
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([gain for _, gain, _ in gains])
    assert [text.get_text() for text in axes.get_yticklabels()] == ["$x^", "cat", "dog"]
    assert plots.gains(two_rows, "") is None
    two_rows["multi"][0].options["DATA.PER_CLASS"] = 5  # trained on other images than the baseline
    assert plots.gains(two_rows, "base") is None


def test_of_many_classes_the_extremes_are_drawn_and_the_mean_is_of_all(record, tmp_path):
    """Of 100 classes that gain 0 to 99 points, 10 of either end."""
    names = [f"class {number}" for number in range(100)]
    for row, factor in (("base", 0.0), ("more", 1.0)):
        analysis = analysis_with([factor * number for number in range(100)], names)
        record(row, 0, {"test/top1": [1.0, 2.0, 3.0]}, analysis=analysis)
    figure = plots.gains(rows_of(find_runs([str(tmp_path / "logs")])), "base")
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == [*range(10), 0, *range(90, 100)]
    assert axes.lines[-1].get_xdata()[0] == pytest.approx(49.5)
    assert "Of 100 classes the 10 of either end" in texts(figure)


def test_scores_against_parameters_and_cost(two_rows):
    (axes,) = plots.cost(two_rows).axes
    points = {each.get_label(): each for each in axes.containers}
    for row, seeds in CURVES.items():
        hours, top1 = [1.0 + (row == "multi"), 2.0 + (row == "multi")], [seed[-1] for seed in seeds]
        line, _, bars = points[row]
        assert line.get_xydata().tolist() == [[statistics.mean(hours), pytest.approx(statistics.mean(top1))]]
        across, up = (bar.get_segments()[0] for bar in bars)
        assert across[:, 0].tolist() == pytest.approx(
            [statistics.mean(hours) + sign * statistics.stdev(hours) for sign in (-1, 1)]
        )
        assert up[:, 1].tolist() == pytest.approx(
            [statistics.mean(top1) + sign * statistics.stdev(top1) for sign in (-1, 1)]
        )
    (axes,) = plots.parameters(two_rows).axes
    assert {each[0].get_xdata()[0] for each in axes.containers} == {2.0}


def test_devices_that_differ_are_said(record, tmp_path):
    record("a", 0, {"test/top1": [1.0, 2.0, 3.0]}, hours=1.0)
    record("b", 0, {"test/top1": [1.0, 2.0, 3.0]}, hours=2.0, device="Loom", starts=[{}])
    said = texts(plots.cost(rows_of(find_runs([str(tmp_path / "logs")]))))
    assert "different devices (Abacus, 2 threads, Loom): do not compare" in said
    assert "What teachers said was kept" not in said
    starts = [{"device": "Loom"}, {"device": "Abacus"}]
    record("c", 0, {"test/top1": [1.0, 2.0, 3.0]}, hours=2.0, starts=starts)  # which was continued
    rows = rows_of(find_runs([str(tmp_path / "logs")]))
    one = {name: runs for name, runs in rows.items() if runs[0].name == "c"}
    assert len(one) == 1 and "different devices (Abacus, Loom): do not compare" in texts(plots.cost(one))


def test_hours_are_those_of_all_devices(record, tmp_path):
    """As in tables, which took them times the processes while this picture did not."""
    record("a", 0, {"test/top1": [1.0, 2.0, 3.0]}, hours=1.5, processes=2)
    (axes,) = plots.cost(rows_of(find_runs([str(tmp_path / "logs")]))).axes
    assert axes.containers[0][0].get_xdata().tolist() == [3.0]


def test_hours_that_kept_teachers_spared_are_said(record, tmp_path):
    kept = {"DISTILLATION__CACHE": tmp_path / "views", "DISTILLATION__TEACHER_WEIGHTS": "[a.pt]", "TRAINER": "kd"}
    kept |= {"DISTILLATION__TEACHERS": "[resnet20]"}
    record("a", 0, {"test/top1": [1.0, 2.0, 3.0]}, overrides=kept, hours=1.0)
    said = texts(plots.cost(rows_of(find_runs([str(tmp_path / "logs")]))))
    assert "only the run that asked them first has the hours of it" in said


def test_modes_of_deit_one_line_each():
    """As the DeiT report draws them: all modes in one picture, without the teacher's curve."""
    rows = rows_of(find_runs([str(ROOT / "logs" / "cifar10-jpeg_deit")]))
    figure = plots.modes(rows)
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["both, hard", "both, soft", "class", "distill, hard", "hard", "none", "soft"]
    runs = rows["deit-nano_c10jpeg_soft"]
    means = [statistics.mean(run.curves["test/top1"][epoch] for run in runs) for epoch in range(1, 6)]
    assert list(figure.axes[0].lines[-1].get_ydata()) == pytest.approx(means)


@pytest.fixture
def many_rows(record, tmp_path):
    """Ten rows."""
    for number in range(10):
        record(f"row{number}", 0, {"test/top1": [1.0, 2.0 + number, 3.0]}, hours=1.0 + number)
    return rows_of(find_runs([str(tmp_path / "logs")]))


def test_more_rows_than_colours_have_a_panel_each(many_rows):
    figure = plots.accuracy(many_rows, "row3")
    assert [axes.get_title() for axes in figure.axes] == list(many_rows)
    for number, axes in enumerate(figure.axes):
        lines = [line for line in axes.lines if line.get_color() == picture_style.COLOURS[0]]
        assert [list(line.get_ydata()) for line in lines] == [[1, 2 + number, 3]]
        assert len(axes.lines) == 10
    (axes,) = plots.cost(many_rows).axes
    assert {text.get_text() for text in axes.texts} == set(many_rows)


@picture_style.styled
def drawn_by(figure):
    """Draw a figure; returns the renderer that knows how large its text is."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return canvas.get_renderer()


def test_readable_in_print_and_by_the_colour_blind(two_rows, many_rows):
    """Lines differ in dashes and marker, not in colour alone; no text is below 8 pt at its printed width."""
    looks = [picture_style.look(position) for position in range(picture_style.MOST)]
    for part in ("color", "linestyle", "marker"):
        assert len({str(look[part]) for look in looks}) == picture_style.MOST
    for look in looks:  # contrast with white paper, as WCAG 2.2 has it, of at least 2:1
        parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(look["color"])]
        assert 1.05 / (np.dot(parts, [0.2126, 0.7152, 0.0722]) + 0.05) >= 2
    for rows in (two_rows, many_rows):
        for figure in plots.draw(rows, baseline=next(iter(rows))).values():
            assert figure.get_size_inches()[0] in (picture_style.COLUMN, picture_style.PAGE)
            renderer = drawn_by(figure)
            drawn = [text for text in figure.findobj(lambda part: hasattr(part, "get_fontsize")) if text.get_text()]
            assert min(text.get_fontsize() for text in drawn) >= 8
            written = [*figure.texts, *(text for legend in figure.legends for text in legend.get_texts())]
            for axes in figure.axes:
                written += [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
            for text in (text for text in written if text.get_text()):
                own, whole = text.get_window_extent(renderer), figure.bbox.padded(1)
                assert whole.contains(own.x0, own.y0) and whole.contains(own.x1, own.y1), text.get_text()


def test_names_are_no_formulas(record, tmp_path):
    record("a", 0, {"test/top1": [1.0, 2.0, 3.0]})
    figure = plots.accuracy({"_$\\frac{$": find_runs([str(tmp_path / "logs")])})
    assert picture_style.rendered(figure, "svg")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [" _$\\frac{$"]


def test_the_same_bytes_each_time(two_rows, tmp_path, monkeypatch):
    outputs = []
    for name in ("first", "second"):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", str(len(name)))
        code, output, _ = called("tools/plot.py", tmp_path / "logs", "--baseline", "base", "--out", tmp_path / name)
        files = {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        assert code == 0
        assert output.splitlines() == [
            str(tmp_path / name / f"{n}.{k}") for n in PICTURES_OF_TWO for k in ("png", "svg")
        ]
        outputs.append(files)
    assert outputs[0] == outputs[1]
    for name, content in outputs[0].items():
        assert (
            not re.search(rb"date|Matplotlib v|20\d\d-\d\d", content)
            if name.endswith("svg")
            else b"tEXt" not in content
        )


PICTURES_OF_TWO = ["accuracy", "losses", "gains", "weights", "mine", "parameters", "cost"]


def test_choice_and_codes(two_rows, tmp_path):
    logs, out = tmp_path / "logs", tmp_path / "out"
    code, output, errors = called("tools/plot.py", logs, "--what", "accuracy", "--format", "png", "--out", out)
    assert (code, output) == (0, f"{out / 'accuracy.png'}\n")
    assert errors == f"plot.py: warning: {logs / 'base' / 'seed2'}: unfinished, epoch 2 of 3\n"
    code, output, errors = called("tools/plot.py", logs, "--what", "gains", "modes", "--out", out)
    assert (code, output) == (1, "")
    assert errors.splitlines()[1:] == [
        "plot.py: no row has values for gains; it needs --baseline ROW",
        "plot.py: no row has values for modes",
    ]
    code, output, errors = called("tools/plot.py", logs, "--baseline", "bass", "--out", out)
    assert (code, output, errors) == (2, "", "plot.py: no row 'bass', there are base, multi\n")
    code, _, errors = called("tools/plot.py", tmp_path / "nothing", "--out", out)
    assert (code, errors) == (2, f"plot.py: {tmp_path / 'nothing'}: there is no such folder\n")
    (tmp_path / "file").touch()
    code, _, errors = called("tools/plot.py", logs, "--out", tmp_path / "file")
    assert code == 2 and errors.startswith("plot.py: ") and len(errors.splitlines()) == 1
    assert called("tools/plot.py", logs, "--what", "beauty")[0] == 2
    with pytest.raises(ValueError, match="no picture 'beauty', there are accuracy, "):
        plots.draw(two_rows, names=["beauty"])
