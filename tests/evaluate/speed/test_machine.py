"""Facts of a run."""

from __future__ import annotations

import json

import torch

from depthdial.evaluate.speed import machine


def test_facts_are_json_and_name_no_place(tmp_path):
    facts = machine.facts(torch.device("cpu"))
    text = json.dumps(facts, allow_nan=False)
    assert set(facts) == {"date", "commit", "machine", "versions"}
    assert facts["machine"]["threads"] == torch.get_num_threads() and facts["machine"]["gpu"] is None
    assert str(tmp_path.home()) not in text


def test_no_checkout_has_no_commit(tmp_path):
    assert machine.commit(tmp_path) is None


def test_no_git_has_no_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.commit(tmp_path) is None
