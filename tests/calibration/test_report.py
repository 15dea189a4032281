"""The health report says what was found, in words, numbers and pictures, and what has changed."""

import dataclasses
import json
import math
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import pytest

import opu
from opu.calibration import CalibrationResult, HealthReport, Quantity, check_health, compare, read_report
from opu.calibration.report.figures import FIGURES
from opu.calibration.report.health import check_folder
from opu.calibration.suite import ROUTINES
from opu.calibration.watch import MediumWatch
from opu.cli.calibrate import calibration_rows
from opu.errors import DataFileError, DeviceError, UnreachableError
from opu.sim.device import SimulatedBench
from opu.sim.models import preset
from opu.testing import Faults, FaultyDevice


def result(name="gain", value=1.0, **changes):
    fields = {
        "name": name,
        "summary": f"the {name}",
        "value": value,
        "unit": "DN",
        "uncertainty": 0.01,
        "limit": (0.5, 1.5),
        "frames": 8,
        "seconds": 0.5,
    }
    return CalibrationResult(**{**fields, **changes})


@pytest.fixture
def description():
    with opu.open("sim:?preset=aurora&seed=7") as device:
        return device.describe()


@pytest.fixture
def report_of(description):
    def make(*results, **changes):
        return HealthReport(
            uri="sim:",
            device=msgspec.structs.replace(description, **changes),
            started_unix_s=1.7e9,
            quick=True,
            results=results,
            skipped={"stepping": "no reference arm"},
            versions={"openopu": "1"},
        )

    return make


def saved(report):
    return msgspec.json.decode(msgspec.json.encode(report.as_json()))


def test_a_finding_outweighs_a_good_value(report_of):
    good, bad = result(), result("dark", findings=("The camera is dark.",))
    assert good.passed
    assert not bad.passed
    report = report_of(good, bad)
    assert not report.passed
    assert report.findings == ("The camera is dark.",)


def test_faults_that_differ_in_numbers_alone_are_told_once(report_of, tmp_path):
    report = report_of(
        result("exposure", findings=("All 32 frames read 0 DN.", "A share of 1.5e-05 is hot.")),
        result("grain", findings=("All 8 frames read 0 DN.",)),
        result("linearity", findings=("A share of 2 is hot.", "All 8 frames read 0 DN.", "It bends.")),
    )
    assert report.faults == {
        "All 32 frames read 0 DN.": ("exposure", "grain", "linearity"),
        "A share of 1.5e-05 is hot.": ("exposure", "linearity"),
        "It bends.": ("linearity",),
    }
    assert len(report.findings) == 5
    report.save(tmp_path)
    summary = (tmp_path / "index.html").read_text().split("All routines")[0]
    assert summary.count("frames read 0 DN.") == 1
    assert "(exposure, grain, linearity)" in summary


def test_a_routine_without_a_limit_says_what_it_is_judged_by(report_of, tmp_path):
    watch = result("medium_watch", limit=(None, None))
    report_of(watch).save(tmp_path)
    assert "<td>no fault</td>" in (tmp_path / "index.html").read_text()
    assert calibration_rows({"medium_watch": watch.as_json()})[0][2:4] == ("no fault", "passed")


def test_a_further_number_beyond_its_limit_counts():
    wide = Quantity(value=3.0, unit="1", uncertainty=0.1, limit=(None, 2.0), summary="width")
    assert not result(quantities={"width": wide}).passed
    assert Quantity(value=math.nan, unit="1", uncertainty=math.nan, summary="only told").passed
    assert not Quantity(value=math.nan, unit="1", uncertainty=0.0, limit=(0.0, None), summary="needed").passed


def test_the_folder_holds_page_numbers_and_data(report_of, tmp_path):
    curve = np.arange(5.0)
    report = report_of(result(data={"curve": curve}), result("dark", math.nan, findings=("Dark & <cold>.",)))
    report.save(tmp_path / "health")
    document = json.loads((tmp_path / "health" / "report.json").read_text())
    assert document["schema"] == "openopu.calibrate/1"
    assert document["ok"] is False
    assert document["calibration"]["dark"]["value"] is None
    assert document["calibration"]["gain"]["passed"] is True
    with np.load(tmp_path / "health" / "data" / "gain.npz", allow_pickle=False) as data:
        np.testing.assert_array_equal(data["curve"], curve)
    page = (tmp_path / "health" / "index.html").read_text()
    assert "Do not believe the device yet" in page
    assert "Dark &amp; &lt;cold&gt;." in page
    assert "no reference arm" in page
    assert "not measured" in page


def test_only_what_exceeds_its_uncertainty_has_changed(report_of):
    before = saved(report_of(result(value=1.0), result("dark", 1.0)))
    after = saved(report_of(result(value=1.05), result("dark", 1.2)))
    [change] = compare(before, after)
    assert change.routine == "dark"
    assert change.standard_errors == pytest.approx(0.2 / (0.01 * math.sqrt(2)))
    assert change.text == "the dark: 1 before, 1.2 DN now."


def test_changes_of_verdict_faults_and_medium_are_told(report_of, description):
    medium = msgspec.structs.replace(description.medium, epoch=description.medium.epoch + 1)
    before = saved(report_of(result(value=1.499), result("dark", findings=("Old fault.",))))
    after = saved(report_of(result(value=1.501), result("dark", math.nan, findings=("New fault.",)), medium=medium))
    texts = [change.text for change in compare(before, after)]
    assert texts[0].startswith("The epoch of the medium was")
    assert any("It missed its limit." in text for text in texts)
    assert "the dark: cannot be measured any more." in texts
    assert "New: New fault." in texts
    assert "Gone: Old fault." in texts


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"schema": "openopu.bench/1"}', b'{"calibration": 3}', b"[" * 200_000]
)
def test_what_is_no_report_is_refused_with_its_name(tmp_path, content):
    (tmp_path / "report.json").write_bytes(content)
    with pytest.raises(DataFileError, match=r"report\.json"):
        read_report(tmp_path)


def test_a_report_that_is_missing_is_refused(tmp_path):
    with pytest.raises(DataFileError, match="There is no report"):
        read_report(tmp_path / "none")


def test_what_was_written_can_be_compared_with(report_of, tmp_path):
    report = report_of(result())
    report.save(tmp_path)
    earlier = read_report(tmp_path)
    assert report.save(tmp_path, earlier=earlier) == tmp_path
    assert "Nothing beyond four standard errors" in (tmp_path / "index.html").read_text()


def test_only_the_named_routines_run():
    with opu.open("sim:?preset=aurora&seed=7") as device:
        report = check_health(device, ["dark_frames"], quick=True)
    assert report.passed, report.findings
    assert [result.name for result in report.results] == ["dark_frames"]


def test_a_medium_that_jumps_between_routines_is_told():
    aurora = preset("aurora")
    jumping = dataclasses.replace(aurora.drift, jump_times_s=(1.8,), jump_share=0.5)
    with SimulatedBench(dataclasses.replace(aurora, drift=jumping), seed=3) as device:
        watch = MediumWatch(device)
        for name in ("dark_frames", "exposure", "grain", "latency", "stability", "linear_mode", "feedback"):
            watch.look(name)
        result = watch.result()
    [finding] = result.findings
    assert re.match(r"The medium jumped while \w+ ran\.", finding), finding
    assert result.value < 0.9
    assert not result.passed


def test_two_runs_of_one_device_do_not_differ():
    with opu.open("sim:?preset=aurora&seed=7") as device:
        slow = ("transmission_matrix", "singular_values", "focusing", "tracking")
        names = [name for name in ROUTINES if name not in slow]
        first, second = (check_health(device, names, quick=True, noise_key=key) for key in (1, 2))
    assert compare(saved(first), saved(second)) == []


@pytest.mark.parametrize(("before", "after", "n_changes"), [(0.0, 12.0, 1), (2.0, 3.0, 1), (553.1, 550.0, 0)])
def test_a_setting_has_changed_where_it_differs(report_of, before, after, n_changes):
    reports = [
        saved(
            report_of(
                result(
                    quantities={
                        "gain": Quantity(
                            value=value, unit="dB", uncertainty=math.nan, summary="gain setting", is_setting=True
                        )
                    }
                )
            )
        )
        for value in (before, after)
    ]
    texts = [change.text for change in compare(*reports)]
    assert texts == [f"gain setting: {before:g} before, {after:g} dB now."] * n_changes


def test_routines_say_what_was_set():
    with opu.open("sim:?preset=aurora&seed=7") as device:
        report = check_health(device, ["exposure", "ones_range", "grain"], quick=True)
    settings = {
        (each.name, name) for each in report.results for name, number in each.quantities.items() if number.is_setting
    }
    assert settings == {("exposure", "gain"), ("ones_range", "exposure"), ("ones_range", "gain"), ("grain", "stride")}


def test_a_bound_has_not_changed():
    before, after = (
        {"value": value, "uncertainty": None, "unit": "s", "passed": True, "summary": "at least this"}
        for value in (6.0, 7.0)
    )
    report = {"quick": False, "device": {"device_id": "x", "medium": {"medium_id": "m", "epoch": 0}}, "versions": {}}
    documents = [
        {**report, "calibration": {"stability": {**number, "quantities": {}, "findings": []}}}
        for number in (before, after)
    ]
    assert compare(*documents) == []
    documents[1]["calibration"]["stability"]["passed"] = False
    [change] = compare(*documents)
    assert change.text == "at least this: 6 before, 7 s now. It missed its limit."


def test_what_was_not_measured_this_time_is_told(report_of):
    wide = Quantity(value=3.0, unit="1", uncertainty=0.1, summary="width")
    before = saved(report_of(result(quantities={"width": wide}), result("dark")))
    texts = [change.text for change in compare(before, saved(report_of(result())))]
    assert texts == ["Not measured this time: dark.", "Not measured this time: width."]


@pytest.mark.parametrize("name", list(FIGURES))
def test_a_figure_without_its_data_does_not_stop_the_page(report_of, tmp_path, name):
    report_of(result(name, math.nan, data={"other": np.zeros(0)}, findings=("Dead.",))).save(tmp_path)
    assert "could not be measured" in (tmp_path / "index.html").read_text()


def test_a_report_leaves_nothing_of_the_one_before(report_of, tmp_path):
    report_of(result("old", data={"x": np.zeros(2)}), result(data={"x": np.zeros(2)})).save(tmp_path)
    report_of(result(data={"x": np.ones(2)})).save(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["data", "gain.npz", "index.html", "report.json"]


def foreign_page(folder):
    (folder / "index.html").write_text("My home page")


def foreign_data(folder):
    (folder / "data").mkdir()
    (folder / "data" / "gain.npz").write_text("My data")


def damaged_report(folder):
    (folder / "report.json").write_text("{}")


def report_without_files(folder):
    document = json.loads((folder / "report.json").read_text())
    del document["files"]
    (folder / "report.json").write_text(json.dumps(document))


def report_that_lists(name):
    def change(folder):
        document = json.loads((folder / "report.json").read_text())
        document["files"].append(name)
        (folder / "report.json").write_text(json.dumps(document))

    return change


def file_in_place_of_data(folder):
    (folder / "data" / "gain.npz").unlink()
    (folder / "data").rmdir()
    (folder / "data").write_text("My data")


def link_in_place_of_data(folder):
    (folder / "data").rename(folder / "elsewhere")
    (folder / "data").symlink_to(folder / "elsewhere")


def more_data(folder):
    (folder / "data" / "dark.npz").write_text("My data")


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("make", [foreign_page, foreign_data, damaged_report])
def test_a_folder_of_something_else_is_refused_and_left_as_it_is(report_of, tmp_path, make):
    make(tmp_path)
    before = content(tmp_path)
    for use in (check_folder, report_of(result(data={"x": np.zeros(2)})).save):
        with pytest.raises(DataFileError, match="has files") as caught:
            use(tmp_path)
        assert str(tmp_path) in caught.value.problem
        assert "another folder" in caught.value.remedy
    assert content(tmp_path) == before


@pytest.mark.parametrize(
    "change",
    [
        report_without_files,
        report_that_lists("../precious.txt"),
        report_that_lists("data/../../precious.npz"),
        report_that_lists("/etc/passwd"),
        report_that_lists(3),
        file_in_place_of_data,
        link_in_place_of_data,
        more_data,
    ],
)
def test_only_what_a_report_has_listed_is_replaced(report_of, tmp_path, change):
    folder = tmp_path / "health"
    (tmp_path / "precious.txt").write_text("mine")
    report_of(result(data={"x": np.zeros(2)})).save(folder)
    change(folder)
    before = content(tmp_path)
    new = report_of(result(data={"x": np.ones(2)}), result("dark", data={"x": np.ones(2)}))
    for use in (check_folder, new.save):
        with pytest.raises(DataFileError, match=r"does not list its files|no report has written"):
            use(folder)
    assert content(tmp_path) == before


def test_files_beside_a_report_stay(report_of, tmp_path):
    report_of(result("old", data={"x": np.zeros(2)})).save(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "data" / "notes.txt").write_text("mine")
    check_folder(tmp_path)
    report_of(result(data={"x": np.ones(2)})).save(tmp_path)
    assert {path.name for path in tmp_path.rglob("*.*")} == {"gain.npz", "index.html", "report.json", "notes.txt"}
    assert (tmp_path / "data" / "notes.txt").read_text() == "mine"


def test_what_a_killed_process_has_left_is_in_nobodys_way(report_of, tmp_path):
    (tmp_path / ".report-x1y2.part" / "data").mkdir(parents=True)
    check_folder(tmp_path)
    report_of(result()).save(tmp_path)
    check_folder(tmp_path)


def test_a_replacement_that_is_interrupted_can_be_repeated(report_of, tmp_path, monkeypatch):
    report_of(result("old", data={"x": np.zeros(2)}), result(data={"x": np.zeros(2)})).save(tmp_path)
    new = report_of(result(data={"x": np.ones(2)}), result("dark", data={"x": np.ones(2)}))
    for number in range(4):
        with monkeypatch.context() as patch:
            left, replace = [number], Path.replace

            def cut(path, target, left=left, replace=replace):
                if not left[0]:
                    raise OSError(5, "Input/output error")
                left[0] -= 1
                return replace(path, target)

            patch.setattr(Path, "replace", cut)
            with pytest.raises(DataFileError):
                new.save(tmp_path)
        check_folder(tmp_path)
    new.save(tmp_path)
    names = ["dark.npz", "data", "gain.npz", "index.html", "report.json"]
    assert sorted(path.name for path in tmp_path.rglob("*")) == names


def test_an_interrupted_report_does_not_replace_one_with_more_routines(report_of, tmp_path):
    data = {"x": np.zeros(2)}
    whole = report_of(result(data=data), result("dark", data=data))
    assert whole.save(tmp_path) == tmp_path
    before = content(tmp_path)
    for value in (1.1, 1.2):
        part = msgspec.structs.replace(report_of(result(value=value, data=data)), interrupted="It was stopped by hand.")
        check_folder(tmp_path)
        assert part.save(tmp_path) == tmp_path / "interrupted"
        assert before.items() <= content(tmp_path).items()
        assert read_report(tmp_path / "interrupted")["calibration"]["gain"]["value"] == value
    assert msgspec.structs.replace(whole, interrupted="The server is gone.").save(tmp_path) == tmp_path
    assert read_report(tmp_path)["interrupted"] == "The server is gone."


def foreign_folder(path):
    path.mkdir()
    (path / "index.html").write_text("My home page")


def foreign_file(path):
    path.write_text("mine")


def foreign_link(path):
    path.with_name("elsewhere").mkdir()
    path.symlink_to(path.with_name("elsewhere"))


@pytest.mark.parametrize("make", [foreign_folder, foreign_file, foreign_link])
def test_an_interrupted_report_takes_the_place_of_nothing_else(report_of, tmp_path, make):
    report_of(result(), result("dark")).save(tmp_path)
    make(tmp_path / "interrupted")
    before = content(tmp_path)
    part = msgspec.structs.replace(report_of(result()), interrupted="It was stopped by hand.")
    for use in (check_folder, part.save):
        with pytest.raises(DataFileError, match="interrupted"):
            use(tmp_path)
    assert content(tmp_path) == before


def test_threads_save_reports_at_once(report_of, tmp_path):
    folders = [tmp_path / str(number) for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(report_of(result(data={"x": np.zeros(2)})).save, folders))
    for folder in folders:
        assert read_report(folder)["calibration"].keys() == {"gain"}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), UnreachableError("The server is gone.", "Start it again.")])
def test_an_interrupted_run_reports_what_is_finished(error, tmp_path):
    started, stopped = [], []

    def on_start(name):
        started.append(name)
        if name == "grain":
            raise error

    with opu.open("sim:?preset=aurora&seed=7") as device, pytest.raises(type(error)):
        check_health(
            device,
            ["dark_frames", "exposure", "grain"],
            quick=True,
            on_start=on_start,
            on_interruption=stopped.append,
        )
    assert started == ["dark_frames", "exposure", "grain"]
    [report] = stopped
    assert [result.name for result in report.results] == ["dark_frames", "exposure"]
    assert not report.passed
    report.save(tmp_path)
    document = read_report(tmp_path)
    assert document["interrupted"] in ("It was stopped by hand.", "The server is gone.")
    assert document["ok"] is False
    assert "The calibration was interrupted" in (tmp_path / "index.html").read_text()


def test_a_small_device_is_watched():
    aurora = preset("aurora")
    small = dataclasses.replace(
        aurora,
        dmd=dataclasses.replace(aurora.dmd, rows=5, columns=8),
        camera=dataclasses.replace(aurora.camera, rows=20, columns=20),
    )
    with SimulatedBench(small, seed=1) as device:
        watch = MediumWatch(device)
        watch.look("dark_frames")
        result = watch.result()
    assert result.frames > 0
    assert result.findings == () or not math.isnan(result.value)


def test_a_device_that_fails_is_a_finding_of_the_watch():
    class Loose(FaultyDevice):
        def _open_session(self, config):
            raise DeviceError("The camera does not answer.", "Look at its cable.")

    with Loose(opu.open("sim:?preset=aurora&seed=7"), Faults()) as device:
        watch = MediumWatch(device)
        watch.look("dark_frames")
        result = watch.result()
    assert result.findings == ("The camera does not answer. Look at its cable.",)
    assert not result.passed


def test_a_page_without_matplotlib_says_why_it_has_no_figures(report_of, tmp_path, monkeypatch):
    data = {"time_s": np.arange(3.0), "power": np.ones(3), "corrected": np.ones(3)}
    report = report_of(result("laser_power", data=data))
    with_figures = (report.save(tmp_path / "with") / "index.html").read_text()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    without = (report.save(tmp_path / "without") / "index.html").read_text()
    assert "<svg" in with_figures
    assert "openopu[plots]" not in with_figures
    assert "<svg" not in without
    assert "openopu[plots]" in without
    assert "could not be measured" not in without


def test_results_and_reports_print_as_one_line(report_of):
    good = result(value=1.0, data={"map": np.zeros((64, 64))}, quantities={"more": result("noise")})
    bad = result("dark", value=math.nan, findings=("It is dark.",))
    assert repr(good) == str(good) == "CalibrationResult(gain: 1.000 ± 0.010 DN, passed)"
    assert repr(bad) == "CalibrationResult(dark: not measured, missed, faults: 1)"
    assert repr(report_of(good, bad)) == "HealthReport(sim:: 1 of 2 routines passed, faults: 1)"


def test_of_a_quick_report_and_another_settings_and_verdicts_are_compared(report_of):
    def report(quick, value, noise, exposure):
        setting = result("exposure", exposure, limit=(None, None), is_setting=True)
        measured = result(value=value, quantities={"noise": result("noise", noise), "exposure": setting})
        return saved(msgspec.structs.replace(report_of(measured), quick=quick))

    assert len(compare(report(False, 1.0, 1.0, 1.0), report(False, 1.2, 1.0, 1.0))) == 1
    for quick, said in ((True, "The earlier report is quick"), (False, "Only this report is quick")):
        changes = compare(report(quick, 1.0, 1.0, 1.0), report(not quick, 1.6, 1.2, 2.0))
        assert changes[0].text.startswith(said)
        assert [change.text.split(":")[0] for change in changes[1:]] == ["the gain", "the exposure"]
        assert compare(report(quick, 1.0, 1.0, 1.0), report(not quick, 1.2, 1.2, 1.0)) == changes[:1]
