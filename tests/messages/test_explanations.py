"""Snapshots of what people read: explanations of violations, summaries, help."""

from __future__ import annotations

import sys

import msgspec
import pytest
from syrupy.assertion import SnapshotAssertion

from properties.case import Case, Special, Step
from properties.domain import Promise
from properties.observation import Collective, Observation, Raised, RankObservation
from properties.values.elements import complete
from properties.verdict import Discrepancy, Outcome, Verdict, violated
from verify.cli.parser import parser
from verify.report.explain import Occurrence, explain
from verify.report.resemblance import Likeness
from verify.report.summary import summary
from verify.report.words import case_words
from verify.result import Accounting, History, KnownResult, PropertyResult, StandsOn, SubjectResult
from verify.subject import Subject
from verify.trial import Trial

SUBJECT = Subject(spec="my_kernels:SyncBN", label="my_kernels:SyncBN")
CASE = Case(batches=(1, 0, 4), spatial=((3, 3),), channels=2, dtype="float16", param_dtype="float32", seed=42)
FORWARD = Discrepancy(
    quantity="output.0",
    rank=2,
    index=(1, 0, 2, 1),
    observed=0.12792969,
    expected=0.12402344,
    bound=9.8e-4,
    ratio=3.986,
    observed_bits="0x3018",
    mismatched=17,
    elements=72,
    channels=(0,),
    mismatched_ranks=(2,),
)


def trial(
    verdict: Verdict, *, case: Case = CASE, observation: Observation | None = None, **more: object
) -> Trial:
    return Trial(case=case, verdicts=(verdict,), observation=observation, **more)  # type: ignore[arg-type]


def text(made: Trial, *, subject: Subject = SUBJECT, **more: object) -> str:
    occurrence = Occurrence(
        property_id=made.verdicts[0].property,
        trial=made,
        subject=subject,
        **{"minimal": True, **more},  # type: ignore[arg-type]
    )
    return explain(occurrence)[1]


def test_a_violated_forward(snapshot: SnapshotAssertion) -> None:
    assert text(trial(violated("forward", [FORWARD], elements=72))) == snapshot


def test_mismatched_elements_that_may_be_more_are_told_as_such() -> None:
    some = msgspec.structs.replace(FORWARD, at_least=True)
    assert "Mismatched elements: at least 17 / 72 (23.6%)" in text(trial(violated("forward", [some])))


def test_several_discrepancies_a_looser_grade_and_options(snapshot: SnapshotAssertion) -> None:
    many = [
        Discrepancy(quantity=f"output.{k}", rank=0, index=(0, k), bound=1.0, ratio=9.0 - k) for k in range(6)
    ]
    made = trial(
        violated("forward", [FORWARD, *many]),
        satisfied="B",
        graded={"A": {"forward": 3.9}, "B": {"forward": 0.4}},
    )
    subject = Subject(
        spec="./my kernels.py:SyncBN",
        label="mine",
        promise=Promise(grade="A"),
        device="cuda",
        backend="nccl",
        options=("--device cuda", "--contract momentum=decay"),
    )
    assert text(made, subject=subject, minimal=False) == snapshot


def test_what_a_failure_resembles(snapshot: SnapshotAssertion) -> None:
    made = trial(violated("forward", [FORWARD], elements=72))
    named = Likeness(causes=tuple((f"cause-{k}", f"does the {k}. wrong thing") for k in range(5)), trials=2)
    assert text(made, likeness=named) == snapshot
    assert "Resembles none of the known causes." in text(made, likeness=Likeness(trials=2))
    staged = Likeness(trials=2, stage=("merge", "the merge of the ranks' statistics"))
    assert "First wrong is the merge of the ranks' statistics." in text(made, likeness=staged)
    assert "--contract=running_var=biased" in text(
        made, likeness=Likeness(convention=(("running_var", "biased"),), trials=1)
    )
    assert "No cause was looked up: ValueError: x." in text(made, likeness=Likeness(error="ValueError: x"))


def test_what_wrong_values_are_in_terms_of_what_is_expected():
    doubled = msgspec.structs.replace(FORWARD, relation="2 x what is expected")
    words = "Equals   2 x what is expected, in all that are wrong in channel 0 on rank 2."
    assert words in text(trial(violated("forward", [doubled])))
    buffer = msgspec.structs.replace(doubled, quantity="running_mean.0", index=(1,))
    words = "Equals   2 x what is expected, in all that are wrong on rank 2."
    assert words in text(trial(violated("running_mean", [buffer])))


def test_a_cause_of_what_is_hardly_beyond_its_bound_is_a_weak_lead() -> None:
    named = Likeness(causes=(("cause", "does the wrong thing"),), trials=2)
    hardly = msgspec.structs.replace(FORWARD, ratio=1.9)
    assert 'Weakly resembles the fault "cause"' in text(trial(violated("forward", [hardly])), likeness=named)
    assert '\nResembles the fault "cause"' in text(trial(violated("forward", [FORWARD])), likeness=named)
    died = Discrepancy(quantity="ending", rank=0, observed="SIGABRT", expected="returned", ratio=1.5)
    assert "Weakly" not in text(trial(violated("ending", [died])), likeness=named)


@pytest.mark.parametrize(
    ("history", "words", "command"),
    [
        (History(when="first"), "only the first time that it runs in a process", "my_kernels:SyncBN\n"),
        (History(when="again"), "only when it has run before", "my_kernels:SyncBN --times 2"),
        (
            History(when="after", after=(Case(batches=(3,)), Case(batches=(4,)))),
            "only after 2 other cases in the same processes",
            """--after '{"batches":[3]}' --after '{"batches":[4]}'""",
        ),
        (History(when="unknown"), "the failure comes and goes", "my_kernels:SyncBN\n"),
    ],
)
def test_a_failure_that_needs_a_history_says_so_and_how_to_see_it(
    history: History, words: str, command: str
) -> None:
    told = text(trial(violated("forward", [FORWARD])), history=history)
    assert words in told
    assert command in told


def test_what_decides_is_told(snapshot: SnapshotAssertion) -> None:
    tail = msgspec.structs.replace(FORWARD, pattern="samples from 3 on")
    case = msgspec.structs.replace(
        CASE, random_parameters=True, steps=(Step(), Step(rewritten=True, batches=(1, 2, 4)))
    )
    made = trial(violated("forward", [tail], elements=72), case=case)
    assert text(made, history=History(holds=("in float32", "with equal batches"))) == snapshot


def test_few_inputs_of_the_failing_channel_are_told_rank_by_rank() -> None:
    case = Case(batches=(2, 0, 1), channels=2, seed=3, steps=(Step(), Step()))
    found = msgspec.structs.replace(FORWARD, quantity="grad_input.1", index=(0, 1), rank=2)
    lines = text(trial(violated("grad_input", [found]), case=case)).splitlines()
    (told,) = (line for line in lines if line.startswith("Input"))
    x, g = complete(case, (0,))[0, 1]
    assert told.startswith(f"Input    step 1, channel 1: {x[0, 1, 0]:.7g}, {x[1, 1, 0]:.7g} | - | ")
    (told,) = (line for line in lines if line.startswith("Cotangent"))
    assert told.startswith(f"Cotangent step 1, channel 1: {g[0, 1, 0]:.7g}, ")
    many = msgspec.structs.replace(case, batches=(9, 0, 1))
    assert "Input" not in text(trial(violated("grad_input", [found]), case=many))


def test_of_a_channel_nothing_is_told_where_nothing_is_drawn() -> None:
    made = trial(violated("forward", [FORWARD], elements=72))
    assert "Channel" not in text(made)
    wide = msgspec.structs.replace(CASE, variance_exponent=18)
    assert "running variance 2.6e+05 before" in text(
        trial(violated("forward", [FORWARD]), case=wide)
    ).replace("262144", "2.6e+05")
    end = msgspec.structs.replace(FORWARD, quantity="running_var.end", index=(1,))
    assert "Channel  1 has " in text(trial(violated("running_var", [end]), case=wide))


@pytest.mark.parametrize(("minimal", "advice"), [(True, True), (None, True), (False, False)])
def test_a_looser_grade_is_advised_only_by_a_case_that_was_minimised(
    minimal: bool | None, *, advice: bool
) -> None:
    graded = {"A": {"forward": 3.9}, "B": {"forward": 0.4}}
    made = trial(violated("forward", [FORWARD]), satisfied="B", graded=graded)
    told = text(made, minimal=minimal)
    assert "this case breaks grade A and satisfies grade B" in told
    assert ("declare it with --grade B" in told) is advice


def test_an_aborted_rank_with_its_ledger(snapshot: SnapshotAssertion) -> None:
    def gather(dtype: str) -> tuple[Collective, ...]:
        return (Collective("allgather_", "forward 0", (0, 1), "", (dtype,), ((7,),), 14),)

    seen = Observation(
        ranks=(
            RankObservation(rank=0, ending="stopped", ledger=gather("float32")),
            RankObservation(
                rank=1,
                ending="died",
                exit="signal SIGABRT",
                ledger=gather("float16"),
                stack="Fatal Python error: Aborted\n\nThread 0x0 (most recent call first):\n"
                '  File "mine.py", line 6 in forward\n'
                '  File "lib/verify/ranks/running.py", line 118 in _forward\n',
            ),
        )
    )
    found = Discrepancy(
        quantity="ending",
        rank=1,
        observed="signal SIGABRT",
        expected="returned",
        mismatched_ranks=(1,),
        message="rank 1 died (signal SIGABRT), at mine.py:6 in forward",
        ending="died",
    )
    case = Case(batches=(2, 0), channels=3, dtype="float16")
    assert text(trial(violated("ending", [found]), case=case, observation=seen)) == snapshot


def test_ranks_that_hang_in_the_same_place_share_a_stack() -> None:
    def hangs(rank: int, line: int) -> RankObservation:
        stack = f'Thread 0x{rank} (most recent call first):\n  File "mine.py", line {line} in forward\n'
        return RankObservation(rank=rank, ending="timeout", stack=stack)

    seen = Observation(ranks=(hangs(0, 6), hangs(1, 9), hangs(2, 6)))
    found = Discrepancy(
        quantity="ending", rank=0, observed="timeout", expected="returned", message="all", ending="timeout"
    )
    told = text(trial(violated("ending", [found]), case=Case(batches=(2, 2, 2)), observation=seen))
    assert told.count("Stack of ") == 2
    assert "Stack of ranks 0 and 2\n" in told
    assert "Stack of rank 1\n" in told


def test_a_hang_and_an_exception(snapshot: SnapshotAssertion) -> None:
    seen = Observation(
        ranks=(
            RankObservation(
                rank=0,
                ending="timeout",
                stack="\n".join(f'  File "deep.py", line {n} in f{n}' for n in range(40)),
            ),
            RankObservation(
                rank=1,
                ending="raised",
                raised=Raised("builtins.RuntimeError", "only me", "forward 0", "RuntimeError: only me\n"),
            ),
        )
    )
    found = [
        Discrepancy(quantity="ending", rank=0, message="rank 0 did not end in time", ending="timeout"),
        Discrepancy(quantity="ending", rank=1, message="rank 1 raised RuntimeError", ending="raised"),
    ]
    assert text(trial(violated("ending", found), case=Case(), observation=seen), repeats=False) == snapshot


def test_a_disagreement_of_bits_and_a_missing_value(snapshot: SnapshotAssertion) -> None:
    bits = Discrepancy(
        quantity="running_mean.0",
        rank=1,
        index=(0,),
        observed=0.1,
        expected=-0.2,
        observed_bits="0x3dcd135a",
        mismatched=1,
        elements=1,
        mismatched_ranks=(1,),
        message="running_mean.0 differs: 0xbe4ee7ab on rank 0, 0x3dcd135a on rank 1.",
    )
    infinite = Discrepancy(
        quantity="running_var.0",
        rank=0,
        index=(0,),
        observed="inf",
        expected=1.36,
        bound=1e-6,
        ratio=float("inf"),
        mismatched=1,
        elements=2,
        mismatched_ranks=(0, 1),
    )
    texts = (
        text(trial(violated(name, [found])))
        for name, found in (("agreement", bits), ("running_var", infinite))
    )
    assert "\n\n".join(texts) == snapshot


@pytest.mark.parametrize(
    "case",
    [
        Case(batches=(1,)),
        Case(batches=(2, 0), spatial=((2, 3), (4, 5)), dtype="float64", param_dtype="float64", affine="none"),
        Case(
            batches=(1, 2, 3),
            spatial=((2, 2),),
            dtype="bfloat16",
            param_dtype="bfloat16",
            groups=((0, 2), (1,)),
            affine="weight",
            frozen=("weight",),
            momentum=None,
            tracking=False,
            input_grad=(True, False, False),
            input_layout="channels_last",
            cotangent_layout="expanded",
            strided_buffers=True,
            values="tiny_spread",
            rank_offset=4,
            specials=(Special("nan"), Special("huge", 1)),
            steps=(
                Step(recompute=True, backward="deferred"),
                Step(mode="eval", backward="none"),
                Step(accumulate=True),
            ),
            probe="scaling",
        ),
        Case(wrong="channels"),
        Case(
            spatial=((2, 2),),
            input_offset=3,
            cotangent_offset=8,
            variance_exponent=-18,
            steps=(
                Step(mode="eval", backward="none", grad_mode="inference"),
                Step(backward="none", grad_mode="no_grad"),
                Step(backward="twice", rewritten=True, batches=(3, 0)),
                Step(edited=True, frozen=True, spatial=((2, 5), (1, 4))),
            ),
        ),
    ],
    ids=["plain", "uneven", "everything", "wrong", "schedule"],
)
def test_a_case_in_words(case: Case, snapshot: SnapshotAssertion) -> None:
    assert case_words(case) == snapshot


def test_a_summary(snapshot: SnapshotAssertion) -> None:
    result = SubjectResult(
        subject="mine",
        label="mine",
        expectation="HOLDS",
        verdict="VIOLATED",
        grade={"float16": "B", "float32": "A"},
        required="A",
        domain={},
        contract={},
        excluded=0.25,
        seconds=8.0,
        stopped="4 cases hung",
        accounting=Accounting(
            cases=100,
            skipped=3,
            pairs=900,
            coarse_pairs=9,
            elements=10_000,
            undecided=120,
            blind=7,
            hung=4,
            died=1,
        ),
        known=(
            KnownResult(
                id="S1", state="seen", reason="An empty rank.", link="https://x", excused=2, skipped=3
            ),
            KnownResult(id="S2", state="stale", reason="Gone."),
        ),
        properties={
            "forward": PropertyResult(holds=90, violated=2, undecided=1, excused=2, max_ratio=12.5),
            "agreement": PropertyResult(holds=99, violated=0),
        },
        stands_on=StandsOn(
            cases=99,
            synchronised=70,
            world_sizes={"1": 29, "2": 35, "3": 35},
            properties=("forward", "agreement"),
        ),
    )
    assert "\n".join(summary(result)) == snapshot(name="usual")
    assert "\n".join(summary(result, everything=True)) == snapshot(name="everything")


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="argparse words its help otherwise from 3.13 on")
@pytest.mark.parametrize(
    "words",
    [[], ["run"], ["replay"], ["faults"], ["doctor"]],
    ids=["verify", "run", "replay", "faults", "doctor"],
)
def test_help(
    words: list[str],
    snapshot: SnapshotAssertion,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        parser().parse_args([*words, "--help"])
    assert capsys.readouterr().out == snapshot


def test_only_violated_properties_can_be_explained() -> None:
    with pytest.raises(ValueError, match="Expected a violated property"):
        text(trial(Verdict(property="forward", outcome=Outcome.HOLDS)))
