"""What is recorded, and for which batches, without a GPU; what is played is in test_cuda."""

import copy
import pickle

import pytest
import torch
import toys

from ebm_from_clf import replay
from ebm_from_clf.drift import energy_and_score


@pytest.fixture
def recorded(monkeypatch):
    """The sizes of the passes that are recorded; they are played without a graph."""
    sizes = []

    class Pass(replay._Pass):
        def __init__(self, energy, u, y, pool):
            self.energy, self.u, self.y = energy, u, y
            self.value, self.score = energy_and_score(energy, u, y)
            self.graph = self
            sizes.append(len(u))

        def pool(self):
            return None

        def replay(self):
            found = energy_and_score(self.energy, self.u, self.y)
            self.value[:], self.score[:] = found

    monkeypatch.setattr(replay, "_Pass", Pass)
    monkeypatch.setattr(torch.cuda, "device", lambda device: torch.no_grad())
    return sizes


def batch(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, *toys.SHAPE, generator=generator), torch.arange(n) % 3


def test_a_batch_of_any_size_is_played_in_one_of_few(recorded):
    energy, recorder = toys.smooth(), replay.Recorder()
    for n in (5, 8, 3, 1, 6, 4, 2, 5):
        u, y = batch(n, n)
        for _ in range(2):  # recorded, then played
            found, expected = recorder.play(energy, u, y), energy_and_score(energy, u, y)
            assert all(torch.allclose(a, b) for a, b in zip(found, expected, strict=True))
    assert recorded == [5, 8, 3, 1, 6, 4, 2]
    for n in range(9, 17):
        recorder.play(energy, *batch(n))
    assert recorded[7:] == [10, 12, 14, 16]


def test_what_was_played_stays_when_more_is_played(recorded):
    energy, recorder = toys.smooth(), replay.Recorder()
    first = recorder.play(energy, *batch(4))
    kept = [t.clone() for t in first]
    recorder.play(energy, *batch(4, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, kept, strict=True))


def test_what_was_recorded_of_something_else_is_forgotten(recorded):
    energy, recorder = toys.smooth(), replay.Recorder()
    weight = next(energy.classifier.parameters())

    def sizes():
        recorder.follow((1.0, replay._place(weight)))
        recorder.play(energy, *batch(4))
        return recorded

    assert sizes() == [4] and sizes() == [4]
    with torch.no_grad():
        weight.mul_(1.1)  # where it was
    assert sizes() == [4]
    weight.data = weight.data.clone()
    assert sizes() == [4, 4]
    recorder.follow((2.0, replay._place(weight)))
    assert not recorder._passes


def test_what_cannot_be_recorded_is_not_tried_again(monkeypatch):
    tried = []

    def fails(*args):
        tried.append(args)
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(replay, "_Pass", fails)
    monkeypatch.setattr(torch.cuda, "device", lambda device: torch.no_grad())
    energy, recorder, (u, y) = toys.smooth(), replay.Recorder(), batch(4)
    for _ in range(3):
        found, expected = recorder.play(energy, u, y), energy_and_score(energy, u, y)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert len(tried) == 1


def test_on_a_cpu_the_energy_is_left_as_it_is(recorded):
    energy, recorder = toys.smooth(), replay.Recorder()
    assert recorder.of(energy, ()) is energy
    recorder.play(energy, *batch(4))
    for other in (copy.deepcopy(recorder), pickle.loads(pickle.dumps(recorder))):
        assert not other._passes  # a graph cannot be copied
