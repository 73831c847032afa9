"""The state of a run on disk: what comes back, and what a crash or a stranger can do to it."""

import os

import pytest
import torch

from ebm_from_clf import UsageError
from ebm_from_clf.state import read_state, write_state

STATE = {
    "update": 7,
    "rate": 0.1,
    "name": "a",
    "none": None,
    "optimizer": {"state": {0: {"step": torch.tensor(3.0), "avg": torch.randn(2, 3)}}},
    "groups": [{"betas": (0.9, 0.999), "params": [0, 1], "fused": False}],
    "generator": torch.Generator().get_state(),
    "empty": {},
    "dtype": torch.bfloat16,
}


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple) and type(a) is type(b) and len(a) == len(b):
        return all(equal(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and a == b


def test_a_state_comes_back_bit_for_bit(tmp_path):
    write_state(tmp_path / "s", STATE)
    assert equal(STATE, read_state(tmp_path / "s"))


def test_shared_and_strided_tensors_are_kept(tmp_path):
    x = torch.arange(12.0).view(3, 4)
    write_state(tmp_path / "s", {"x": x, "view": x[1:], "turned": x.T})
    back = read_state(tmp_path / "s")
    assert torch.equal(back["view"], x[1:]) and torch.equal(back["turned"], x.T)


def test_a_crash_while_writing_leaves_the_old_state(tmp_path, monkeypatch):
    write_state(tmp_path / "s", {"update": 1})
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            write_state(tmp_path / "s", {"update": 2})
    assert read_state(tmp_path / "s") == {"update": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_a_state_of_another_version_is_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("ebm_from_clf.state.FORMAT", "0")
        write_state(tmp_path / "s", STATE)
    with pytest.raises(UsageError, match="written by another version"):
        read_state(tmp_path / "s")


def test_a_state_that_cannot_be_read_is_not_called_damaged(tmp_path):
    with pytest.raises(OSError):
        read_state(tmp_path / "none")


@pytest.mark.parametrize("content", [b"", b"junk" * 100, b"\x80\x04}."])
def test_a_damaged_state_is_refused(tmp_path, content):
    (tmp_path / "s").write_bytes(content)
    with pytest.raises(UsageError, match="Remove it to start the run anew"):
        read_state(tmp_path / "s")


def test_a_truncated_state_is_refused(tmp_path):
    write_state(tmp_path / "s", STATE)
    whole = (tmp_path / "s").read_bytes()
    (tmp_path / "s").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match="damaged"):
        read_state(tmp_path / "s")
