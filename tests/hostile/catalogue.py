"""The catalogue of hostile subjects: what each does, and what must be told of it.

An entry names a class of `hangs.py`, `deaths.py`, `leftovers.py` or `answers.py`; the first line of its
docstring says what it does. Those files are loaded by ranks; this one is of the parent, and imports no torch.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from properties.case import Case, Step
from verify.report.stamp import digest

HERE = Path(__file__).parent
HARMLESS = Case(batches=(3, 2), channels=4, spatial=((2,),), seed=3)
TRIGGER = 0.75
TIMEOUT = 1.5
STAYS = ""
ENDING = ("ending",)
_EVALUATION = (Step(mode="eval", backward="none"),)


def hostile_case(*, steps: tuple[Step, ...] = (Step(),), probe: str = "") -> Case:
    """Return `HARMLESS` as one on which a hostile subject strikes."""
    return Case(
        batches=(3, 2), channels=4, spatial=((2,),), seed=3, momentum=TRIGGER, steps=steps, probe=probe
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One hostile subject.

    Attributes:
        id: File and class.
        endings: Of the two ranks; alternatives are separated by `|`.
        violated: All properties that must be violated; none if what it returns is right.
        tells: Words that the stack, the exit, the exception or the output of a rank must have.
        ledger: The last collective of a rank that could not answer.
        lost: What is said of the group that must be renewed; `STAYS` if it must be kept.
        groups: How many groups it costs.
        case: The one on which it strikes.
        timeout: Seconds that the case gets.
        costly: Seconds are lost with it; not part of the default test run.
    """

    id: str
    endings: tuple[str, str] = ("returned", "returned")
    violated: tuple[str, ...] = ()
    tells: str = ""
    ledger: str = ""
    lost: str = STAYS
    groups: int = 1
    case: Case = field(default_factory=hostile_case)
    timeout: float = TIMEOUT
    costly: bool = False

    @property
    def spec(self) -> str:
        """The subject, as a user names it."""
        file, name = self.id.split(".")
        return f"{HERE / file}.py:{name}"

    @property
    def does(self) -> str:
        """What it does, in one line."""
        file, name = self.id.split(".")
        return _docstrings(file)[name]


@cache
def _docstrings(file: str) -> dict[str, str]:
    nodes = ast.parse((HERE / f"{file}.py").read_text()).body
    classes = [node for node in nodes if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
    return {node.name: (ast.get_docstring(node) or "").partition("\n")[0] for node in classes}


def made_of() -> dict[str, str]:
    """Return what the page `docs/hostile.md` is made of."""
    entries = (
        f"{entry.id} {entry.does} {entry.endings} {entry.violated} {entry.case.id}" for entry in ENTRIES
    )
    return {"subjects": digest(entries)}


def subjects_written() -> set[str]:
    """Return the ids of all hostile subjects there are."""
    files = ("hangs", "deaths", "leftovers", "answers")
    return {f"{file}.{name}" for file in files for name in _docstrings(file)} - {"leftovers.Leaves"}


def _hangs(
    name: str, *, tells: str = "attack", ledger: str = "", costly: bool = True, **more: object
) -> Entry:
    options = {"endings": ("timeout", "timeout"), "violated": ENDING, "lost": "timeout", **more}
    return Entry(id=f"hangs.{name}", tells=tells, ledger=ledger, costly=costly, **options)  # type: ignore[arg-type]


def _dies(name: str, *endings: str, tells: str, **more: object) -> Entry:
    return Entry(
        id=f"deaths.{name}",
        endings=endings or ("died", "died"),  # type: ignore[arg-type]
        violated=ENDING,
        tells=tells,
        **{"lost": "died", **more},  # type: ignore[arg-type]
    )


def _raises(name: str, *, tells: str, file: str = "deaths", **more: object) -> Entry:
    return Entry(
        id=f"{file}.{name}",
        endings=("raised", "raised"),
        violated=ENDING,
        tells=tells,
        **more,  # type: ignore[arg-type]
    )


def _leaves(name: str, lost: str = STAYS, *, evaluation: bool = False, **more: object) -> Entry:
    case = hostile_case(steps=_EVALUATION) if evaluation else hostile_case()
    return Entry(id=f"leftovers.{name}", lost=lost, case=case, **more)  # type: ignore[arg-type]


def _answers(name: str, *violated: str, **more: object) -> Entry:
    return Entry(id=f"answers.{name}", violated=violated, **more)  # type: ignore[arg-type]


ENTRIES: tuple[Entry, ...] = (
    _hangs("InForward", costly=False),
    _hangs("InBackward", tells="backward", ledger="all_gather"),
    _hangs("InCollective", tells="recv", ledger="recv", costly=False),
    _hangs("OnOneRank", ledger="all_gather"),
    _hangs(
        "SkipsTheCollective",
        endings=("timeout", "returned"),
        tells="gather_moments",
        ledger="all_gather",
    ),
    _hangs("InConstructor", tells="__init__"),
    _hangs("AtTheThirdStep", ledger="all_reduce", case=hostile_case(steps=(Step(),) * 3)),
    _hangs("WithTheGil", costly=False),
    _hangs("Busy"),
    _hangs("BusyInC"),
    _hangs("AtALock"),
    _hangs("Masked"),
    _hangs("Stopped", tells="gather_moments", ledger="all_gather"),
    _hangs("WithADaemon"),
    _hangs("OtherCollectives", ledger="barrier"),
    _dies("Aborts", "died", "stopped", tells="these were its last words"),
    _dies("AbortsInBackward", "stopped", "died", tells="in backward", ledger="all_gather"),
    _dies("Segfaults", tells="signal SIGSEGV"),
    _dies("OverflowsTheStack", tells="signal SIGSEGV"),
    _raises("Recurses", tells="RecursionError"),
    _raises("Exits", tells="SystemExit"),
    _dies("ExitsAtOnce", tells="exit code 0"),
    _dies("BecomesAnother", tells="exit code 0"),
    _raises("Interrupts", tells="KeyboardInterrupt"),
    _dies("Terminates", tells="signal SIGTERM"),
    _dies("KillsItsPeer", "stopped", "died", tells="signal SIGKILL", groups=2),
    _raises("FillsMemory", tells="allocate", timeout=10.0, costly=True),
    _dies("ClosesEverything", tells="", timeout=5.0),
    Entry(id="deaths.ReturnsTwice"),
    _raises("Raises", tells="this is hostile"),
    _dies(
        "RaisesOnOneRank", "stopped", "raised", tells="only on this rank", ledger="all_gather", lost="stopped"
    ),
    _raises("RaisesInConstructor", tells="never built"),
    _raises("Unspeakable", tells="_UnspeakableError"),
    _raises("ExitsWhenAsked", tells="_ExitingError"),
    _raises("Garrulous", tells="xxx"),
    _raises("NoException", tells="GeneratorExit"),
    _leaves("DefaultDtype"),
    _leaves("Seeds"),
    _leaves("Threads"),
    _leaves("Deterministic"),
    _leaves("NoGradients", evaluation=True),
    _leaves("Anomalies"),
    _leaves("Subnormals"),
    _leaves("Environment"),
    _leaves("Folder"),
    _leaves("RemovesFolders"),
    _leaves("Umask"),
    _leaves("SysPath"),
    _leaves("Masked"),
    _leaves("Alarm"),
    _leaves("SilentOutput"),
    _leaves("NoOutput"),
    _leaves("Errors"),
    _leaves("Shallow"),
    _leaves("Traced"),
    _leaves("OneCore"),
    _leaves("FewDescriptors", "descriptors"),
    _leaves("Slow", "priority"),
    _leaves("HardLimit", "limits"),
    _leaves("DefaultDevice", "modes"),
    _leaves("Autocast", "autocast"),
    _leaves("Inference", "inference mode", evaluation=True),
    _leaves("DestroysTheGroup", "process group", evaluation=True),
    _leaves("Patches", "functions of torch.distributed"),
    _leaves("PatchesModules", "functions of torch.nn.modules.module.Module"),
    _leaves("Hooks", "hooks of all modules"),
    _leaves("SavedTensors", "hooks of saved tensors"),
    _leaves("Handlers", "signal handlers"),
    _leaves("Children", "child processes", timeout=5.0),
    _leaves("Orphans", timeout=10.0, costly=True),
    _leaves("ManyThreads", "threads"),
    _leaves("Descriptors", "open descriptors"),
    _leaves(
        "ClosesFiles",
        "died",
        evaluation=True,
        endings=("died", "died"),
        violated=ENDING,
        tells="exit code 70",
    ),
    _leaves("Floods", timeout=20.0, costly=True),
    _raises("NoTensor", file="answers", tells="type tuple"),
    _raises("Nothing", file="answers", tells="type NoneType"),
    _answers(
        "View",
        *("forward", "running_mean", "running_var", "num_batches_tracked"),
        *("grad_input", "grad_weight", "grad_bias", "dtype_and_layout"),
    ),
    _raises("WrongShape", file="answers", tells="Mismatch in shape"),
    _answers("WrongDtype", "dtype_and_layout"),
    _answers("NoGradient", "grad_input", "grad_weight", "grad_bias", "dtype_and_layout"),
    _answers("DiffersEachTime", "repeatable", case=hostile_case(probe="repeatable")),
    _raises("Endless", file="answers", tells="MemoryError"),
    _raises("Meta", file="answers", tells="meta"),
    _raises("Sparse", file="answers", tells="Sparse"),
    _raises("Complex", file="answers", tells="complex"),
    _raises("Subclass", file="answers", tells="no function is right"),
    _answers("ModifiesItsInput", "grad_input", "grad_weight", "purity"),
    _raises("FreesItsInput", file="answers", tells="backward"),
    _answers("FreesItsCotangent", "purity"),
    _answers("FreesItsOutput", "forward"),
    _answers("NoWeight", "grad_weight", "grad_bias"),
    _raises("OddGradients", file="answers", tells="meta"),
    _raises("OddBuffers", file="answers", tells="Sparse"),
    _raises("RaisesWhenLookedAt", file="answers", tells="do not look"),
)
