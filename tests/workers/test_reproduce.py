"""`adamserve reproduce` as a user runs it, and its report as a browser shows it."""

from __future__ import annotations

import contextlib
import functools
import http.server
import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from adamserve import optim, testing
from adamserve.shard import consistency
from adamserve.train.record import without_nan
from tests.browser import visit
from tests.conftest import Command, Refused
from tests.workers.conftest import tiny_mnist, write
from workers.data import load
from workers.experiments import NAMES, vae
from workers.experiments import reproduce as reproduction
from workers.experiments.base import Scale, Settings, relative
from workers.experiments.comparison import STEP, _untried
from workers.experiments.reproduce import COMPARISONS, EXPERIMENTS
from workers.experiments.trial import Data, Result, Trial, append, mean, read_log

pytestmark = pytest.mark.timeout(600)


SMOKE = Settings(scale=Scale.smoke, data=False, seeds=1, shards=2, workers=1, consistency=consistency.Async())


def reproduce(out: Path, *names: str) -> list[dict[str, Any]]:
    """Run experiments, all of them by default, on a service without Ray."""
    return reproduction.reproduce(
        names or NAMES,
        scale="smoke",
        seeds=None,
        shards=2,
        workers=1,
        consistency=consistency.Async(),
        data_dir=None,
        out=out,
        address=None,
        progress=lambda line: None,
        start=testing.Service.start,
    )


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """Every experiment at the smallest scale, without a data folder."""
    out = tmp_path_factory.mktemp("smoke")
    return out, reproduce(out)


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_every_experiment_runs_and_says_what_held(smoke: tuple[Path, list[dict[str, Any]]]) -> None:
    out, verdicts = smoke
    assert tuple(verdict["experiment"] for verdict in verdicts) == NAMES == tuple(EXPERIMENTS)
    for verdict in verdicts:
        folder = out / verdict["experiment"]
        assert json.loads((folder / "verdict.json").read_text()) == verdict
        assert verdict["held"] == all(claim["held"] for claim in verdict["claims"])
        assert verdict["claims"]
        assert all(claim["text"] and claim["source"] and claim["numbers"] for claim in verdict["claims"])
        assert verdict["settings"] == {
            "scale": "smoke", "data": "stand-ins", "seeds": 1, "shards": 2, "consistency": "async",
            "workers": "1 2" if verdict["experiment"] == "regret" else 1,
        }  # fmt: skip
        assert any("stands in for" in line for line in verdict["differs"]), verdict["differs"]
        for figure in verdict["figures"]:
            assert (folder / figure).read_bytes().startswith(b"\x89PNG")
            assert b"<svg" in (folder / figure).with_suffix(".svg").read_bytes()
        assert list(folder.glob("*.csv"))


def test_what_must_hold_at_any_size_held(smoke: tuple[Path, list[dict[str, Any]]]) -> None:
    """Identities and limits, unlike who wins, do not depend on the size of the data."""
    held = {claim["text"]: claim["held"] for verdict in smoke[1] for claim in verdict["claims"]}
    for part in (
        "the L^p rules go to AdaMax",
        "R(T) stays below the theorem's bound",
        "the service's R(T) is the sum by hand",
        "on Reddi's stream Adam's average regret stays above",
        "AMSGrad's falls below",
        "goes the same way as the rule by itself",
    ):
        [found] = [verdict for text, verdict in held.items() if part in text]
        assert found, part


def test_the_grid_that_chose_the_rates_is_kept(smoke: tuple[Path, list[dict[str, Any]]]) -> None:
    out, verdicts = smoke
    log = read_log(out / "logreg-mnist" / "trials.jsonl")
    assert len(log) == 9
    by_rule: dict[str, dict[float, float]] = {}
    for key, result in log.items():
        rule = json.loads(key)["rule"]
        by_rule.setdefault(rule["rule"], {})[rule["lr"]] = result["costs"][-1]
    [table] = [rows for title, rows in verdicts[0]["tables"].items() if title.startswith("Final")]
    for label, rate, *_ in table[1:]:
        best = min(by_rule[label], key=lambda lr: by_rule[label][lr])
        assert float(rate) == pytest.approx(best, rel=1e-2)


def test_the_report_shows_every_figure_and_asks_for_nothing(
    smoke: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    out, verdicts = smoke
    with served(out) as address:
        url = f"{address}/REPORT.html"
        seen = visit(
            url,
            "({images: [...document.images].map(i => [i.complete, i.naturalWidth]),"
            " text: document.body.innerText})",
        )
    assert seen.requests == [url]
    assert seen.errors == []
    figures = sum(len(verdict["figures"]) for verdict in verdicts)
    assert len(seen.answer["images"]) == figures
    assert all(complete and width >= 300 for complete, width in seen.answer["images"])
    for verdict in verdicts:
        assert verdict["title"] in seen.answer["text"]
        assert all(claim["text"] in seen.answer["text"] for claim in verdict["claims"])
    assert seen.screenshot.startswith(b"\x89PNG")
    # A page without its figures is a tenth of this.
    assert len(seen.screenshot) > 200_000
    (tmp_path / "REPORT.png").write_bytes(seen.screenshot)


def test_what_is_done_is_not_run_again(
    smoke: tuple[Path, list[dict[str, Any]]], command: Command, refused: Refused
) -> None:
    out, verdicts = smoke
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name != "REPORT.html"}
    again = ("reproduce", "all", "--scale", "smoke", "--out", out)
    assert json.loads(command(*again, "--format", "json").out) == verdicts
    assert {path: path.stat().st_mtime_ns for path in before} == before
    command("reproduce", "regret", "--scale", "smoke", "--out", out)
    shown = (out / "REPORT.html").read_text()
    assert all(verdict["title"] in shown for verdict in verdicts), "what other calls made is shown too"
    line = refused(*again, "--shards", 1)
    assert line == f"--out: {out} holds a reproduction with shards 2, not 1 (give another folder)"


@pytest.mark.ray
def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    """The first run is the command, on a Ray of its own."""
    log = tmp_path / "logreg-imdb" / "trials.jsonl"
    command = [
        sys.executable,
        "-m",
        "adamserve",
        "reproduce",
        "logreg-imdb",
        "--scale",
        "smoke",
        "--out",
        str(tmp_path),
    ]
    running = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    tick = threading.Event()
    while not (log.exists() and len(log.read_text().splitlines()) >= 3):
        assert running.poll() is None
        tick.wait(0.05)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    kept = log.read_text().splitlines()
    assert not (tmp_path / "logreg-imdb" / "verdict.json").exists()
    log.write_text("\n".join(kept) + '\n{"trial": {"netw')  # as if killed in the middle of a line
    [verdict] = reproduce(tmp_path, "logreg-imdb")
    lines = [line for line in log.read_text().splitlines() if line.endswith("}")]
    assert lines[: len(kept)] == kept
    whole = load("zipf")
    assert json.loads((tmp_path / "data.json").read_text()) == {
        "zipf": {"examples": len(whole.train_y), "sha256": whole.digest()}
    }
    assert len(read_log(log)) == 9
    assert verdict["claims"]


def test_a_folder_of_other_data_is_refused(tmp_path: Path, command: Command, refused: Refused) -> None:
    """Also where nothing is left to run; and nothing of the folder changes."""
    data, out = tmp_path / "data", tmp_path / "out"
    write(data / "mnist", tiny_mnist(train=12))
    whole = load("mnist", data / "mnist")
    settings = replace(SMOKE, data=True)
    for name, content in {
        "settings.json": settings.as_json(),
        "data.json": {"mnist": {"examples": 12, "sha256": whole.digest()}},
        "regret/verdict.json": VERDICT,
    }.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(json.dumps(content))
    again = ("reproduce", "regret", "--data-dir", data, "--out", out)
    command(*again)  # the same data: the verdict is shown, and nothing is run
    before = {path: path.read_bytes() for path in out.rglob("*.json")}
    write(data / "mnist", tiny_mnist(train=11))
    assert re.fullmatch(
        rf"--out: {out} holds trainings on other data, with mnist examples 12, sha256 \w+, not examples 11, sha256 \w+"
        r" \(give another folder\)",
        refused(*again),
    )
    assert {path: path.read_bytes() for path in out.rglob("*.json")} == before


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "file").write_text("")
    line = refused("reproduce", "regret", "--out", tmp_path / "file")
    assert line == f"--out: {tmp_path / 'file'} cannot be made: File exists"


def test_a_missing_data_set_is_said_before_anything_is_trained(tmp_path: Path, refused: Refused) -> None:
    data = write(tmp_path / "data" / "mnist", tiny_mnist()).parent
    line = refused("reproduce", "all", "--data-dir", data, "--out", tmp_path / "out", alone=False)
    assert line.startswith(f"{data}: holds neither aclImdb_v1.tar.gz nor aclImdb")
    assert list((tmp_path / "out").iterdir()) == []


BAD = [
    (["reproduce", "mnist"], "EXPERIMENT: there is no experiment 'mnist' (choose logreg-mnist, "),
    (["reproduce", "all", "--scale", "big"], "--scale: must be smoke, cpu, full, got 'big'"),
    (["reproduce", "all", "--seeds", "0"], "--seeds: must be at least 1, got 0"),
    (["reproduce", "all", "--workers", "0"], "--workers: must be at least 1, got 0"),
    (["reproduce", "all", "--consistency", "sync"], "--consistency: 'sync' is not a consistency mode"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(a) for a, _ in BAD])
def test_bad_input_is_one_line(
    arguments: Sequence[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    monkeypatch.chdir(tmp_path)
    assert refused(*arguments).startswith(message)


VERDICT: dict[str, Any] = {
    "experiment": "regret", "title": "Regret", "settings": {"scale": "smoke"}, "held": True,
    "claims": [{"text": "so it is", "source": "here", "numbers": {"T": 1}, "held": True}],
    "figures": [], "tables": {}, "what": [], "differs": [],
}  # fmt: skip


@pytest.mark.parametrize(
    ("steep", "flat", "held"),
    [
        ((1.0, 2.0), (1.0, 1.04), (True, True)),
        ((2.0, 1.0), (1.0, 1.06), (False, False)),
        ((1.0, math.inf), (1.0, math.inf), (True, False)),
        ((math.inf, 1.0), (math.inf, 1.0), (False, False)),
        ((math.inf, math.inf), (math.inf, math.inf), (False, False)),
    ],
)
def test_what_the_vae_s_claims_make_of_costs(
    steep: tuple[float, float], flat: tuple[float, float], held: tuple[bool, bool]
) -> None:
    """With and without correction; two runs that both diverge say nothing of it."""
    size = vae.SIZES[Scale.smoke]
    cells = list(itertools.product(size.beta1, size.beta2, size.rates, (True, False)))
    costs = {cell: (steep if cell[1] == 0.9999 else flat)[not cell[3]] for cell in cells}
    assert tuple(claim.held for claim in vae.judge(size, costs)) == held
    one = (0.9, 0.99, size.rates[0])
    told = {**costs, (*one, True): math.inf, (*one, False): math.inf}  # is left out, and the others decide
    assert vae.judge(size, told)[1].held == held[1]


CLAIMS = [
    # experiment, final costs, which of its claims hold
    ("logreg-mnist", {"Adam": 0.95, "Nesterov": 0.99, "AdaGrad": 1.0}, [True, True, True]),
    ("logreg-mnist", {"Adam": 0.90, "Nesterov": 0.99, "AdaGrad": 1.0}, [False, True, True]),
    ("logreg-mnist", {"Adam": 1.01, "Nesterov": 0.99, "AdaGrad": 1.0}, [True, False, True]),
    ("logreg-mnist", {"Adam": 0.99, "Nesterov": math.inf, "AdaGrad": 1.0}, [False, True, False]),
    ("logreg-imdb", {"Adam": 1.01, "Nesterov": 1.2, "AdaGrad": 1.0}, [True, True, True]),
    ("logreg-imdb", {"Adam": 1.03, "Nesterov": 1.02, "AdaGrad": 1.0}, [False, False, True]),
    ("logreg-imdb", {"Adam": 0.9, "Nesterov": 0.95, "AdaGrad": 1.0}, [True, True, False]),
    ("mlp-mnist", {"Adam": 1.019, "RMSProp": 1.0, "Nesterov": 2.0, "AdaGrad": 3.0}, [True]),
    ("mlp-mnist", {"Adam": 1.021, "RMSProp": 1.0, "Nesterov": 2.0, "AdaGrad": 3.0}, [False]),
    ("cnn-cifar10", {"Adam": 0.99, "Nesterov": 1.01, "AdaGrad": 1.0}, [True, False]),
    ("cnn-cifar10", {"Adam": math.inf, "Nesterov": 0.99, "AdaGrad": 1.0}, [False, True]),
]


@pytest.mark.parametrize(("name", "finals", "held"), CLAIMS)
def test_what_a_comparison_s_claims_make_of_costs(
    name: str, finals: dict[str, float], held: list[bool]
) -> None:
    [comparison] = [each for each in COMPARISONS if each.name == name]
    assert comparison.rules.keys() == finals.keys()
    claims = comparison.judge(finals)
    assert [claim.held for claim in claims] == held
    assert all(set(claim.numbers) & set(finals) for claim in claims)


def test_a_log_is_read_by_its_keys(tmp_path: Path) -> None:
    log = tmp_path / "folder" / "studies.jsonl"
    key, other = (json.dumps({"seed": seed, "some": (1, 2)}, sort_keys=True) for seed in (0, 1))
    assert read_log(log) == {}
    append(log, key, {"bound": 2.0})
    with log.open("a") as file:
        file.write('{"trial": {"seed": 1, "so')  # as if killed in the middle of a line
    assert read_log(log) == {key: {"bound": 2.0}}
    append(log, other, {"bound": 3.0})
    assert read_log(log) == {key: {"bound": 2.0}, other: {"bound": 3.0}}


def test_a_result_that_diverged_is_read_as_it_was() -> None:
    good = Result(costs=(1.0, 0.5), staleness=0.5, seconds=2.0, average_regret=0.25)
    diverged = Result(costs=(1.0, math.inf), staleness=0.5, seconds=2.0)
    for result in (good, diverged):
        assert Result.read(json.loads(json.dumps(without_nan(asdict(result))))) == result
    assert (mean([good, diverged], "seconds"), mean([good, good], "final")) == (2.0, 0.5)
    assert mean([good, diverged], "final") == mean([good, diverged], "average_regret") == math.inf


def trial(**changes: Any) -> Trial:
    fields: dict[str, Any] = {
        "network": "logreg", "data": Data(name="digits"), "rule": optim.Adam(), "batch": 8, "epochs": 2, "seed": 0,
    }  # fmt: skip
    return Trial(**{**fields, **changes})


@pytest.mark.parametrize(("a", "b", "above"), [(3.0, 2.0, 0.5), (0.0, 0.0, 0.0), (1e-6, 0.0, math.inf)])
def test_a_cost_may_be_nothing(a: float, b: float, above: float) -> None:
    assert relative(a, b) == above


def test_a_trial_s_key_is_all_of_it() -> None:
    others = [
        trial(seed=1),
        trial(rule=optim.Adam(lr=0.1)),
        trial(rule=optim.AdaMax()),
        trial(data=Data(name="digits", examples=5)),
        trial(l2=0.1),
        trial(workers=2),
    ]
    assert len({t.key() for t in [trial(), *others]}) == 1 + len(others)
    assert trial().key() == trial().key()


def test_the_grid_grows_at_the_edge_that_is_best() -> None:
    def finals(*costs: float) -> dict[float, float]:
        return {STEP**i: cost for i, cost in enumerate(costs)}

    assert _untried(2.0, {}) == pytest.approx([2 / STEP, 2, 2 * STEP])
    assert _untried(STEP, finals(3, 2, 3)) == []
    assert _untried(STEP, finals(1, 2, 3)) == pytest.approx([1 / STEP])
    assert _untried(STEP, finals(3, 2, 1)) == pytest.approx([STEP**3])
    assert _untried(STEP, finals(math.inf, math.inf, 1)) == pytest.approx([STEP**3])
