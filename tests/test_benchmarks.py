"""The benchmark suite reports no time of a wrong result, loses nothing on the way to its tables, and sees regressions.

Nothing here asserts how fast anything is.
"""

import dataclasses
import math
import os

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import cases, limits, memory, process, report
from benchmarks.cases import COLD, WARM, WITH_BACKWARD, Case, Problem, registry
from benchmarks.checks import Check, WrongResult, as_tensors
from benchmarks.clocks import CpuClock
from benchmarks.contenders import CONTENDERS, OURS, Contender
from benchmarks.machine import Machine, describe
from benchmarks.rows import Row, read_csv, write_csv
from benchmarks.runner import Measurement, Options, compile_kernels, measure, tabulate

CPU = torch.device("cpu")
SMALL = (4, 3, 12, 10)
COMPUTATIONS = [
    Case("test", "spectral_filter", SMALL, cache=WARM),
    Case("test", "spectral_filter", SMALL, scale=True, weight="per_channel", cache=WARM),
    Case("test", "spectral_filter", SMALL, direction=WITH_BACKWARD, scale=True, cache=WARM),
    Case("test", "shaped_noise", SMALL, scale=True, cache=WARM),
    Case("test", "shaped_noise", SMALL, dtype=torch.bfloat16, cache=WARM),
    Case("test", "add_noise", SMALL, cache=WARM),
    Case("test", "whitened_mse", SMALL, cache=WARM),
    Case("test", "whitened_mse", SMALL, direction=WITH_BACKWARD, cache=WARM),
]
each_computation = pytest.mark.parametrize("case", COMPUTATIONS, ids=lambda case: case.name)


def problem_of(case: Case) -> Problem:
    return Problem(case, CPU, threads=1, cache_bytes=0)


def measurement(case: Case, *contenders: Contender) -> Measurement:
    return measure(case, contenders, CpuClock(), threads=1, seconds=0.001)


def measured(case: Case, *peers: Contender) -> tuple[list[str], list[str]]:
    """Who was timed beside the library, and the problems."""
    result = measurement(case, CONTENDERS[OURS], *peers)
    return [entrant.contender.name for entrant in result.entrants], result.problems


def row(contender: str = OURS, **changes) -> Row:
    """A row of a run that was not made."""
    columns = dict.fromkeys((field.name for field in dataclasses.fields(Row)), "x")
    numbers = dict.fromkeys((field.name for field in dataclasses.fields(Row) if field.type is float), 1.0)
    columns |= numbers | {"threads": 2, "samples": 100, "cores": 2, "extra_bytes": None, "contender": contender}
    columns |= {"group": "targets", "what": "spectral_filter", "size": "1x1x8x8", "case": "one"}
    return Row(**columns | {"median_us": 100.0, "p25_us": 99.5, "p75_us": 100.5} | changes)


# ---- the registries ------------------------------------------------------------------------------------------------


def test_every_case_has_a_name_of_its_own_and_is_computed_by_the_library_and_by_torch():
    for device in ("cpu", "cuda"):
        names = [case.name for case in registry(device)]
        assert len(set(names)) == len(names)
        eager = [CONTENDERS[OURS], CONTENDERS["torch.fft"]]
        assert all(contender.takes(case, torch.device(device)) for case in registry(device) for contender in eager)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_targets_are_every_computation_on_every_size(device):
    targets = {(case.what, case.shape) for case in registry(device) if case.group == "targets"}
    computations = {what for what, _ in targets}
    assert computations == {
        "spectral_filter", "spectral_filter+scale", "shaped_noise+scale", "add_noise", "whitened_mse backward"
    }  # fmt: skip
    assert targets == {(what, shape) for what in computations for shape in cases.target_shapes(device)}


def test_a_gpus_targets_fill_it_and_its_training_batches_are_the_cpus_targets():
    of_group = {group: [c for c in registry("cuda") if c.group == group] for group in ("targets", "sizes", "training")}
    for case in of_group["targets"] + of_group["sizes"]:
        assert 0.9 * cases.GPU_PIXELS < case.pixels <= cases.GPU_PIXELS and case.cache == COLD
    cpus = [dataclasses.replace(c, group="training", cache=WARM) for c in registry() if c.group == "targets"]
    assert of_group["training"] == cpus
    graphs = [CONTENDERS[name] for name in ("sagd, CUDA graph", "torch.fft, CUDA graph")]
    for group, cases_of_group in of_group.items():
        assert all(g.takes(c, torch.device("cuda")) == (group == "training") for g in graphs for c in cases_of_group)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_quick_run_is_a_part_of_the_whole(device):
    every = registry(device)
    quick = cases.quick(every)
    assert {case.what for case in quick} == {case.what for case in every if case.group == "targets"}
    assert len({case.shape for case in quick}) == 4 and set(quick) < set(every)


def test_cold_data_does_not_fit_the_cache_and_warm_data_is_one_copy():
    cold, warm = (Problem(Case("", "whitened_mse", SMALL, cache=c), CPU, 1, 100_000) for c in (COLD, WARM))
    tensors = [*cold.inputs, *cold.targets]
    assert sum(t.numel() * t.element_size() for t in tensors) >= 200_000
    assert len({t.data_ptr() for t in tensors}) == len(tensors) == 2 * cold.copies
    assert warm.copies == len(warm.inputs) == len(warm.targets) == 1


# ---- no time of a wrong result -------------------------------------------------------------------------------------


@each_computation
@pytest.mark.parametrize("name", [OURS, "torch.fft"])
def test_the_check_accepts_those_that_compute_the_case(case, name):
    problem = problem_of(case)
    Check(problem)(CONTENDERS[name].prepare(problem), CONTENDERS[name].noise)


@pytest.mark.parametrize(
    ("case", "name"),
    [
        pytest.param(case, name, id=f"{name}, {case.name}")
        for case in COMPUTATIONS
        for name, peer in CONTENDERS.items()
        if peer.takes(case, CPU) and name not in (OURS, "torch.fft")
    ],
)
def test_the_check_accepts_every_installed_peer(case, name):
    if reason := CONTENDERS[name].missing():
        pytest.skip(reason)
    problem = problem_of(case)
    Check(problem)(CONTENDERS[name].prepare(problem), CONTENDERS[name].noise)


def another_spectrum(result):
    if result.ndim == 0:
        return result + 1
    return torch.fft.ifft(torch.fft.fft(result.float()) * torch.linspace(0, 2, result.shape[-1])).real


@each_computation
@pytest.mark.parametrize("name", [OURS, "torch.fft"])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda result: result * 1.1,
        lambda result: result * 0,
        lambda result: result * math.nan,
        lambda result: result.reshape(-1)[:1],
        another_spectrum,
    ],
    ids=["scaled", "zero", "not a number", "a part", "another spectrum"],
)
def test_the_check_rejects_a_wrong_result(case, name, spoil):
    problem = problem_of(case)
    call = CONTENDERS[name].prepare(problem)
    with pytest.raises(WrongResult):
        Check(problem)(lambda i: [spoil(result) for result in as_tensors(call(i))], CONTENDERS[name].noise)


def test_the_check_rejects_noise_that_is_always_the_same():
    problem = problem_of(Case("test", "shaped_noise", (256, 3, 12, 10), cache=WARM))
    noise = CONTENDERS["torch.fft"].prepare(problem)(0)
    with pytest.raises(WrongResult, match="same noise"):
        Check(problem)(lambda i: noise, "own")


def test_the_check_rejects_a_noisy_input_that_does_not_hold_the_noise():
    problem = problem_of(Case("test", "add_noise", SMALL, cache=WARM))
    call = CONTENDERS["torch.fft"].prepare(problem)
    with pytest.raises(WrongResult, match="result 0"):
        Check(problem)(lambda i: (call(i)[0], call(i)[1]), "own")


def test_a_wrong_contender_is_named_and_not_timed():
    def wrong(problem):
        return lambda i: problem.inputs[i] * 2

    entrants, problems = measured(COMPUTATIONS[0], Contender("wrong", wrong))
    assert entrants == [OURS]
    assert len(problems) == 1 and problems[0].startswith("wrong is wrong on test: spectral_filter")


def test_a_peer_that_fails_is_named_and_a_missing_one_passed_by():
    def fails(problem):
        raise RuntimeError("no plan")

    absent = Contender("absent", fails, requires="a-library-that-is-not-there")
    entrants, problems = measured(COMPUTATIONS[0], Contender("failing", fails), absent)
    assert entrants == [OURS]
    assert len(problems) == 1 and "failing failed" in problems[0] and "no plan" in problems[0]
    assert "a-library-that-is-not-there" in absent.missing()


def test_nobody_is_timed_where_the_library_is_wrong_and_its_failure_is_raised():
    wrong = dataclasses.replace(CONTENDERS[OURS], prepare=lambda problem: lambda i: problem.inputs[i])
    result = measurement(COMPUTATIONS[0], wrong, CONTENDERS["torch.fft"])
    assert result.entrants == [] and result.problems
    broken = dataclasses.replace(wrong, prepare=lambda problem: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        measurement(COMPUTATIONS[0], broken)


# ---- numbers -------------------------------------------------------------------------------------------------------


def test_bytes_and_operations_of_a_case():
    pixels, weight = 4 * 3 * 12 * 10, 4 * 12 * 6
    one_transform = 2.5 * pixels * math.log2(120)
    expected = [
        (2 * 4 * pixels + weight, 2 * one_transform),
        (2 * 4 * pixels + 3 * weight, 2 * one_transform),
        (4 * 4 * pixels + weight, 4 * one_transform),
        (4 * pixels + weight, one_transform),
        (2 * pixels + weight, one_transform),
        (3 * 4 * pixels + weight, one_transform),
        (2 * 4 * pixels + weight, one_transform),
        (3 * 4 * pixels + weight, 2 * one_transform),
    ]
    for case, (one_pass_bytes, flops) in zip(COMPUTATIONS, expected, strict=True):
        assert limits.one_pass_bytes(case) == one_pass_bytes
        assert limits.transform_flops(case) == pytest.approx(flops)


def test_a_call_that_allocates_is_seen_to():
    case = Case("test", "spectral_filter", (16, 3, 128, 128), scale=True, cache=WARM)
    result = case.pixels * 4
    assert memory.extra_bytes(case, "torch.fft", "cpu", threads=1) > result


def test_a_child_process_is_pinned():
    affinity = os.sched_getaffinity(0)
    assert process.in_child(1, os.sched_getaffinity, 0) == {process.physical_cores()[0]}
    assert process.in_child(1, os.getenv, "OMP_NUM_THREADS") == "1"
    assert os.sched_getaffinity(0) == affinity
    with pytest.raises(ValueError, match="threads: expected 1 to"):
        process.in_child(len(affinity) + 1, os.getpid)


def test_several_children_run_each_its_part():
    number = len(process.physical_cores())
    assert process.in_children(number, pow, 2) == [2**n for n in range(number)]


def test_every_case_is_compiled_once_and_a_failure_is_left_to_the_measurement(monkeypatch):
    met = []

    def fails(problem):
        met.append(problem.case)
        raise RuntimeError

    monkeypatch.setitem(CONTENDERS, OURS, dataclasses.replace(CONTENDERS[OURS], prepare=fails))
    options = Options("cpu", cores=2, seconds=0, filter="single call", contenders=(OURS, "torch.fft"))
    for part in range(2):
        compile_kernels(options, part)
    assert len(met) == 5 and set(met) == set(options.cases(2))


def test_rows_survive_the_csv(tmp_path):
    case = COMPUTATIONS[3]
    names = OURS, "torch.fft", "torch.randn"
    result = measurement(case, *(CONTENDERS[name] for name in names))
    rows = tabulate(case, 1, result, limits.Limits(1e9, 1e10), describe(CPU, cores=1))
    rows[0].extra_bytes = 4096
    assert result.problems == [] and [r.contender for r in rows] == list(names)
    assert rows[0].speedup == 1 and rows[0].samples >= 6
    assert all(0 <= r.others_share <= 1 for r in rows)
    assert all(0 < r.min_us <= r.p25_us <= r.median_us <= r.p75_us for r in rows)
    write_csv(tmp_path / "new" / "results.csv", rows)
    for written, read in zip(rows, read_csv(tmp_path / "new" / "results.csv"), strict=True):
        for name, value in dataclasses.asdict(written).items():
            close = isinstance(value, float)
            assert getattr(read, name) == (pytest.approx(value, rel=1e-4) if close else value), name


def test_a_csv_of_other_columns_is_refused(tmp_path):
    (tmp_path / "other.csv").write_text("case,median\na,1\n")
    with pytest.raises(ValueError, match="expected the columns"):
        read_csv(tmp_path / "other.csv")


def test_the_machine_names_a_directory():
    machine = describe(CPU, cores=2)
    assert machine.device_key.startswith("cpu-") and machine.device_key.endswith("-2c")
    assert set(Machine._fields) <= {field.name for field in dataclasses.fields(Row)}


# ---- reports -------------------------------------------------------------------------------------------------------


def a_run() -> list[Row]:
    """Two sizes: against torch.fft 2 and 8 times faster, against the libraries 3 and 4, and 5 and 3."""
    ratios = {"a": {OURS: 1, "torch.fft": 2, "FFTW": 3, "JAX": 4}, "b": {OURS: 1, "torch.fft": 8, "FFTW": 5, "JAX": 3}}
    return [
        row(contender, case=case, size=f"1x1x{8 + n}x8", speedup=ratio, median_us=100.0 * ratio)
        for n, (case, contenders) in enumerate(ratios.items())
        for contender, ratio in contenders.items()
    ]


def test_the_summary_is_the_geometric_mean_and_the_worst_size():
    lines = report.summary(a_run()).splitlines()
    assert "| `spectral_filter` | torch.fft | 4x | 2x (1x1x8x8) |  |" in lines
    assert "| `spectral_filter` | fastest library | 3x | 3x (1x1x8x8) |  |" in lines
    assert any("FFTW" in line for line in lines)
    assert not any("FFTW" in line for line in report.summary(a_run(), every_library=False).splitlines())


def test_the_report_has_every_case_and_the_machine():
    text = report.markdown([*a_run(), row(case="c", group="sizes", size="1x1x31x31", extra_bytes=2**20)])
    for expected in (
        "1x1x8x8",
        "1x1x9x8",
        "1x1x31x31",
        "1.0 MB",
        "## Sizes, 2 threads",
        "Measured limits",
        "do not publish",
    ):
        assert expected in text


def a_gpu_run() -> list[Row]:
    """Two sizes of which sagd reaches 90% and 40% of the copy bandwidth, and a training batch, in a graph as well."""
    machine = {"instruction_set": "cuda", "device": "a GPU", "cores": 16, "threads": 16}
    times = {
        ("a", "7x1x8x8", "targets"): {OURS: 10, "torch.fft": 20, "sagd by cuda": 10, "torch.randn": 5},
        ("b", "7x3x9x8", "targets"): {OURS: 10, "torch.fft": 80, "sagd by cuda": 10, "torch.compile": 30},
        ("c", "1x1x8x8", "training"): {OURS: 4, "torch.fft": 12, "sagd, CUDA graph": 2, "torch.fft, CUDA graph": 3},
    }
    shares = {"a": 0.9, "b": 0.4, "c": 0.1}
    rows = []
    for (case, size, group), contenders in times.items():
        for name, us in contenders.items():
            ratio = us / contenders[OURS]
            numbers = {"median_us": us, "speedup": ratio, "share_of_copy": shares[case] / ratio}
            rows.append(row(name, case=case, size=size, group=group, **numbers, **machine))
    return rows


def test_the_summary_of_a_gpu_is_a_line_for_each_computation():
    lines = report.gpu_summary(a_gpu_run()).splitlines()
    expected = "| `spectral_filter` | 60% | 40% (7x3x9x8) | 4x | 2x (7x1x8x8) | 3x | 0.5x | 3x | 1.5x |"
    assert lines[2:] == [expected]
    text = report.markdown(a_gpu_run())
    assert expected in text and "## Targets\n" in text and "16 cores beside it" in text and "threads" not in text


def test_the_library_by_a_backend_or_in_a_graph_is_no_peer():
    graph, peer = (row(name, median_us=300.0) for name in ("sagd, CUDA graph", "torch.fft"))
    old = [row(), row("sagd, CUDA graph"), row("torch.fft")]
    assert report.compare(old, [row(), graph, old[2]])[1] == 1
    assert report.compare(old, [row(), old[1], peer])[1] == pytest.approx(3)


@pytest.mark.parametrize(
    ("rows", "line", "picture"),
    [(a_run(), "| torch.fft | 4x |", "speedup.png"), (a_gpu_run(), "| 60% | 40% (7x3x9x8) |", "share_of_copy.png")],
    ids=["cpu", "gpu"],
)
def test_the_readme_changes_between_its_markers_alone(tmp_path, rows, line, picture):
    readme, csv = tmp_path / "README.md", tmp_path / "benchmarks" / "results" / "x" / "results.csv"
    start, end = report.readme_markers(rows[0].on_gpu)
    others = "\n".join(report.readme_markers(not rows[0].on_gpu))
    readme.write_text(f"{others}\nbefore\n{start}\nold\n{end}\nafter\n")
    for _ in range(2):
        report.update_readme(readme, csv, rows)
    text = readme.read_text()
    assert text.startswith(f"{others}\nbefore\n{start}") and text.endswith(f"{end}\nafter\n")
    assert "old" not in text and line in text
    assert f"(benchmarks/results/x/{picture})" in text
    readme.write_text(f"{end} {start}")
    with pytest.raises(ValueError, match="benchmarks:start"):
        report.update_readme(readme, csv, rows)


def test_the_readme_has_the_markers_of_both_kinds_of_device():
    text = (command.ROOT / "README.md").read_text()
    assert all(text.count(marker) == 1 for on_gpu in (False, True) for marker in report.readme_markers(on_gpu))


def test_plots_are_drawn_from_the_rows(tmp_path):
    pytest.importorskip("matplotlib")
    from benchmarks.plots import draw

    rows = [*a_run(), *(row(name, group="sizes", size="1x3x31x31", ns_per_pixel=2.0) for name in (OURS, "FFTW"))]
    assert [path.name for path in draw(rows, tmp_path)] == [report.SPEEDUP_PLOT, report.SIZES_PLOT]
    rows = [*a_gpu_run(), *(dataclasses.replace(r, group="sizes") for r in a_gpu_run() if r.case != "c")]
    assert [path.name for path in draw(rows, tmp_path)] == [report.SHARE_PLOT, report.SIZES_PLOT]
    assert all(path.stat().st_size > 5000 for path in tmp_path.iterdir()) and len([*tmp_path.iterdir()]) == 3


# ---- regressions ---------------------------------------------------------------------------------------------------


def changed(rows: list[Row], factor: float, ours: float = 1.0, case: str = "") -> list[Row]:
    """The same run on a machine that takes `factor` of the time, and ours on one case `ours` of that."""

    def of(r: Row) -> float:
        return factor * (ours if r.contender == OURS and r.case == case else 1)

    return [
        dataclasses.replace(r, median_us=r.median_us * of(r), p25_us=r.p25_us * of(r), p75_us=r.p75_us * of(r))
        for r in rows
    ]


def test_a_regression_is_flagged_on_its_case_alone():
    changes, drift = report.compare(a_run(), changed(a_run(), 1.0, ours=1.3, case="b"))
    assert [change.row.case for change in changes if change.regressed] == ["b"]
    assert drift == pytest.approx(1)
    assert "b, 2 threads: 1.30" in report.comparison(changes, drift)


def test_a_slower_machine_is_no_regression_but_a_slower_library_on_a_faster_machine_is():
    changes, drift = report.compare(a_run(), changed(a_run(), 1.5))
    assert drift == pytest.approx(1.5) and not any(change.regressed for change in changes)
    changes, drift = report.compare(a_run(), changed(a_run(), 0.7, ours=1.3, case="a"))
    assert drift == pytest.approx(0.7) and [change.row.case for change in changes if change.regressed] == ["a"]


def test_a_change_within_the_noise_of_the_samples_is_no_regression():
    noisy = [dataclasses.replace(r, p25_us=r.median_us * 0.5, p75_us=r.median_us * 1.5) for r in a_run()]
    changes, _ = report.compare(noisy, changed(noisy, 1.0, ours=1.3, case="b"))
    assert not any(change.regressed for change in changes)


def test_runs_of_two_machines_are_not_compared():
    with pytest.raises(ValueError, match="device_key"):
        report.compare(a_run(), [dataclasses.replace(r, device_key="other") for r in a_run()])


# ---- the command ---------------------------------------------------------------------------------------------------


def test_the_command_runs_writes_draws_and_compares(tmp_path, capsys):
    out = tmp_path / "run"
    chosen = ["--filter", "single call: shaped_noise", "--contenders", "torch.randn", "--threads", "1"]
    assert command.main([*chosen, "--seconds", "0.01", "--output", str(out)]) == 0
    rows = read_csv(out / "results.csv")
    assert [r.contender for r in rows] == [OURS, "torch.randn"]
    assert "torch.randn" in capsys.readouterr().out
    pytest.importorskip("matplotlib")
    assert command.main(["--plot", "--output", str(out)]) == 0
    assert rows[0].device in (out / "results.md").read_text()
    write_csv(
        tmp_path / "fast.csv", [dataclasses.replace(r, median_us=r.median_us / 2) for r in rows if r.contender == OURS]
    )
    assert command.main(["--compare", str(tmp_path / "fast.csv"), str(out / "results.csv")]) == 1
    assert "slower beyond noise: 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--contenders", "nobody"], "expected some of sagd"),
        pytest.param(
            ["--device", "cuda"],
            "torch.cuda.is_available() is False",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
        (["--threads", "0"], "--threads: expected 1 to"),
        (["--seconds", "-1"], "--seconds: expected more than 0, got -1.0"),
        (["--quick", "--output", "/proc/nothing"], "No such file or directory: '/proc/nothing'"),
        (["--filter", "("], "missing )"),
        (["--filter", "no such case"], "--filter: expected to match"),
        (["--compare", "a", "b", "c"], "expected OLD or OLD NEW"),
        (["--plot", "a_file_that_is_not_there.csv"], "a_file_that_is_not_there.csv"),
    ],
)
def test_a_wrong_argument_is_named(arguments, message, capsys):
    with pytest.raises(SystemExit) as error:
        command.main(arguments)
    assert error.value.code == 2 and message in capsys.readouterr().err
