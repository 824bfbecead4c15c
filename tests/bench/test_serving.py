"""`bench serve`: a real server, real clients, and figures that add up."""

from __future__ import annotations

import json

import pytest

from mlc_dsv3.bench.http_client import Answer
from mlc_dsv3.bench.serving import Questions
from mlc_dsv3.cli.main import main


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--clients", "0"], "--clients is '0'; give numbers from 1 up, such as 1,16"),
        (["--clients", "two"], "--clients is 'two'"),
        (["--seconds", "0"], "--seconds is 0.0; it must be above 0"),
        (["--requests", "-1"], "--requests is -1; it must be at least 0"),
        (["--device", "abacus"], "device 'abacus' is unknown"),
        (["--unknown"], "unrecognized arguments: --unknown (see mlc_dsv3 bench serve --help)"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "serve", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err and len(captured.err.splitlines()) == 1


def test_an_answer_is_wrong_where_it_differs_from_the_one_alone() -> None:
    questions = Questions(lambda client, number: Answer(0.0), 10, {3: "yes"})
    assert not questions.differs(13, Answer(0.0, "yes"))
    assert questions.differs(13, Answer(0.0, "no"))
    assert not questions.differs(4, Answer(0.0, "no")), "it was not asked alone"


def test_an_answers_times_are_of_its_pieces() -> None:
    answer = Answer(10.0, pieces=[10.5, 10.6, 11.2, 11.3])
    assert answer.first == 0.5
    assert answer.longest_gap == pytest.approx(0.6)


@pytest.mark.full
@pytest.mark.usefixtures("demo_is_made")
def test_the_demo_is_served_to_several_clients(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "serve", "--clients", "1,4", "--seconds", "1", "--requests", "20", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [load["clients"] for load in told["load"]] == [1, 4]
    for load in told["load"]:
        assert (load["errors"], load["wrong"], load["stalls"]) == (0, 0, 0)
        assert load["requests"] >= load["clients"]
        assert load["tokens_per_second"] > 0
        assert 0 < load["first_median"] <= load["first_99"]
    assert told["shared"]["reused_others"] == 2000
    assert told["shared"]["reused_restarted"] == 1984
    assert 0 < told["beside"]["beside"] < 2
    assert told["memory"]["requests"] == 20 and told["memory"]["errors"] == 0
