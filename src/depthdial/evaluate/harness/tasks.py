"""Find and load tasks of the harness. Prompts, splits and metrics are its own; what it loads comes from our files.

While tasks load, three things it asks for are put in place: data sets with a file in the data folder, the runner of
untrusted code, and a module that transformers no longer has. A task keeps what it got; nothing stays changed.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib.util
import itertools
import json
import logging
import math
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import datasets
import jinja2
import lm_eval.tasks
from datasets.exceptions import DatasetNotFoundError
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from depthdial.evaluate.harness import squad
from depthdial.evaluate.harness.code_eval import CodeEval
from depthdial.evaluate.harness.data import DataFolder

WRONG_DATA = (LookupError, TypeError, AttributeError, ValueError, AssertionError, jinja2.TemplateError)
OUR_RUNNER = ("humaneval", "mbpp")
"""Tasks (by how they begin) that run programs through `code_eval`, which is ours; others bring runners of their own."""
FEWSHOT_SEED = 1234
"""The harness's own."""
_NAME_LINE = re.compile(r"^[\"']?(?:task|group)[\"']?:[ \t]*[\"']?(\w.*?)[\"']?[ \t]*(?:#.*)?$", re.MULTILINE)
_SQUAD = "transformers.data.metrics.squad_metrics"


@dataclass(frozen=True)
class Suite:
    """A task by the name that was asked for; a group (MMLU) has many parts."""

    name: str
    parts: dict[str, Task]

    def limit(self, items: float | None) -> float | None:
        """Items of each part, the first ones, so that there are at least `items` in all where there are as many; below
        1 it is the share of each part."""
        return items if items is None or items < 1 else math.ceil(items / len(self.parts))

    def _items(self, task: Task, items: float | None) -> Iterator[Any]:
        """The items of a part that are run, as the harness counts them."""
        limit, docs = self.limit(items), task.eval_docs
        if limit is not None and limit < 1:
            limit = math.ceil(len(docs) * limit)
        return itertools.islice(docs, None if limit is None else int(limit))

    def digest(self, items: float | None) -> str:
        """A hash of the items and of what surrounds them in the prompts."""
        digest = hashlib.sha256()
        for name, task in self.parts.items():
            docs = self._items(task, items)
            text = json.dumps([name, task.get_config("num_fewshot"), *docs], default=str, sort_keys=True)
            digest.update(text.encode())
            if task.get_config("num_fewshot"):
                digest.update(json.dumps(list(task.fewshot_docs() or ()), default=str, sort_keys=True).encode())
        return digest.hexdigest()

    def check(self, items: float | None) -> None:
        """ValueError, one line, for an item of which the harness cannot make a prompt."""
        for name, task in self.parts.items():
            for i, doc in enumerate(self._items(task, items), 1):
                try:
                    task.doc_to_text(doc)
                    task.doc_to_target(doc)
                    if isinstance(task, ConfigurableTask) and task.OUTPUT_TYPE == "multiple_choice":
                        task.doc_to_choice(doc)
                except WRONG_DATA as error:
                    raise ValueError(
                        f"task {name}, item {i}: the harness cannot make a prompt of it ({error!r}); get its file again"
                    ) from error


def load_suites(
    names: Sequence[str], data: DataFolder | None = None, fewshot: int | None = None, run_code: bool = False
) -> list[Suite]:
    """The tasks of these names. fewshot: examples before each item; None is each task's own number.

    Raises ValueError, one line: for a name that is unknown, a task that is named twice, one whose data are not to be
    had, one that runs code where that is not allowed.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    if len(set(names)) < len(names):
        raise ValueError(f"--tasks names a task twice: {', '.join(names)}")
    if not names:
        raise ValueError("--tasks names no task")
    manager = _manager(names)
    return [_load(manager, name, data, fewshot, run_code) for name in names]


def _manager(names: Sequence[str]) -> TaskManager:
    """A manager that knows these tasks. ValueError for a name that the harness does not have.

    To index all 14,000 files of the harness takes it a quarter of a minute; a look at the lines that name tasks and
    groups finds the few folders that are needed. What is not found so (members of a tag may lie anywhere) is looked up
    in the whole index.
    """
    folders: dict[str, Path] = {}
    for file in Path(lm_eval.tasks.__file__).parent.rglob("*.yaml"):
        in_file = _NAME_LINE.findall(file.read_text(encoding="utf-8", errors="replace"))
        folders.update(dict.fromkeys(in_file, file.parent))
    if all(name in folders for name in names):
        manager = TaskManager(include_path=sorted({folders[name] for name in names}), include_defaults=False)
        if all(name in manager.all_tasks for name in names):
            return manager
    manager = TaskManager()
    for name in names:
        if name not in manager.all_tasks:
            near = difflib.get_close_matches(name, manager.all_tasks, 3)
            hint = f"did you mean {', '.join(near)}?" if near else "`lm_eval ls tasks` lists all"
            raise ValueError(f"the harness has no task {name!r}; {hint}")
    return manager


def _load(manager: TaskManager, name: str, data: DataFolder | None, fewshot: int | None, run_code: bool) -> Suite:
    if _runs_code(manager, name):
        _refuse(name, run_code)
    try:
        with in_place(name, data, run_code):
            parts: dict[str, Task] = manager.load([name])["tasks"]
    except ImportError as error:
        raise ValueError(f"task {name} needs a package that is not here: {error}; install it") from error
    except (*WRONG_DATA, RuntimeError) as error:
        if type(error) is ValueError:  # says what to do already
            raise
        raise ValueError(
            f"task {name} cannot be loaded ({error!r}); does its data set have the split and the columns it needs?"
        ) from error
    _common_metric(name, parts)
    for part, task in parts.items():
        if getattr(task, "UNSAFE_CODE", False):
            _refuse(part, run_code)
        own = task.get_config("num_fewshot")
        if fewshot is not None and own != 0:
            task.set_config(key="num_fewshot", value=fewshot)
        elif own is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
        shots = task.get_config("num_fewshot")
        if shots and (there := len(list(task.fewshot_docs() or ()))) < shots:
            raise ValueError(
                f"task {part} shows {shots} examples, and the data have {there or 'none'}: add its training split, or "
                f"pass --fewshot {there}"
            )
    return Suite(name, parts)


def _common_metric(name: str, parts: dict[str, Task]) -> None:
    """ValueError where the parts of a group have no figure in common: one line of the table could not tell them."""
    if len(parts) > 1 and not set.intersection(*(set(task.aggregation() or ()) for task in parts.values())):
        raise ValueError(f"the parts of {name} have no metric in common; name them one by one: {', '.join(parts)}")


def _runs_code(manager: TaskManager, name: str) -> bool:
    """Does its file say so? Then it is refused before anything of it is imported."""
    file = manager.task_index[name].yaml_path
    return file is not None and bool(load_yaml(file, resolve_func=False).get("unsafe_code"))


def _refuse(name: str, run_code: bool) -> None:
    """ValueError for a task that runs programs, unless that is allowed and they run in our sandbox."""
    if not name.startswith(OUR_RUNNER):
        raise ValueError(
            f"task {name} runs programs that the model wrote, by a runner of its own that locks nothing in"
        )
    if not run_code:
        raise ValueError(
            f"task {name} runs programs that the model wrote; read what `depthdial evaluate --help` says of the "
            "sandbox and pass --allow-code-execution"
        )


@contextlib.contextmanager
def in_place(name: str, data: DataFolder | None, run_code: bool) -> Iterator[None]:
    """What tasks ask for while they load."""
    from_hub = datasets.load_dataset

    def load_dataset(path: str, name_: str | None = None, *args: Any, **kwargs: Any) -> Any:
        part = kwargs.pop("name", name_)
        if data is not None and data.find(path, part) is not None:
            return data.load(path, part)
        try:
            return from_hub(path, part, *args, **kwargs)
        except (OSError, DatasetNotFoundError) as error:
            where = "the data folder knows no file of it" if data is not None else "no --data-dir was given"
            raise ValueError(
                f"task {name} needs the data set {path}: {where}, and the hub does not give it ({type(error).__name__})"
            ) from error

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(datasets, "load_dataset", load_dataset))
        if run_code:
            import evaluate  # takes seconds

            metric = evaluate.load

            def load(path: str, *args: Any, **kwargs: Any) -> Any:
                return CodeEval() if path == "code_eval" else metric(path, *args, **kwargs)

            stack.enter_context(mock.patch.object(evaluate, "load", load))
        if _missing(_SQUAD):
            import transformers.data

            stack.enter_context(mock.patch.dict(sys.modules, {_SQUAD.rpartition(".")[0]: squad, _SQUAD: squad}))
            # `import a.b.c as c` reads attributes, not the table of modules
            stack.enter_context(mock.patch.object(squad, "squad_metrics", squad, create=True))
            stack.enter_context(mock.patch.object(transformers.data, "metrics", squad, create=True))
        yield


def _missing(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is None
    except ModuleNotFoundError:
        return True
