"""adaptive_nms against a separately written oracle, hand-worked cases, invariances and errors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adaptprune.ops import adaptive_nms
from tests.oracles.nms import explains, greedy, random_coords, random_keys, random_scores, softmax

BACKENDS = ["reference", "numba", "auto"]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
FUZZ = settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
by_backend = pytest.mark.parametrize("backend", BACKENDS)
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))


@dataclass
class Case:
    scores: torch.Tensor
    keys: torch.Tensor
    coords: torch.Tensor
    num_keep: int
    options: dict[str, float] = field(default_factory=dict)

    def rows(self) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        arrays = (self.scores.double().numpy(), self.keys.double().numpy(), self.coords.numpy())
        return list(zip(*arrays, strict=True))

    def run(self, backend: str, **changes: Any) -> torch.Tensor:
        """The kept indices, after the checks that hold for any input: int64, shape, ascending, no duplicate."""
        inputs = {name: changes.pop(name, getattr(self, name)) for name in ("scores", "keys", "coords", "num_keep")}
        out = adaptive_nms(*inputs.values(), **{**self.options, **changes}, backend=backend)
        assert out.dtype == torch.int64
        assert out.device == inputs["scores"].device
        assert tuple(out.shape) == (inputs["scores"].shape[0], inputs["num_keep"])
        assert (out[:, 1:] > out[:, :-1]).all(), f"not strictly ascending: {out.tolist()}"
        assert out.min() >= 0
        assert out.max() < inputs["scores"].shape[1]
        return out

    def check(self, backend: str) -> None:
        for kept, row in zip(self.run(backend).tolist(), self.rows(), strict=True):
            problem = explains(kept, *row, **self.options)
            assert problem is None, f"{backend} kept {kept}: {problem}"

    def check_exactly(self, backend: str) -> None:
        """For inputs in which every tie is exact, so that one answer is right."""
        expected = [sorted(greedy(*row, self.num_keep, **self.options)) for row in self.rows()]
        assert self.run(backend).tolist() == expected


def row(scores: list[float], keys: Any, coords: Any, num_keep: int, **options: float) -> Case:
    """A batch of one in float64; coords may be (row, column) pairs, which then lie in grid 0."""
    places = torch.tensor(coords)
    if places.shape[1] == 2:
        places = torch.cat([torch.zeros_like(places[:, :1]), places], dim=1)
    vectors = torch.tensor(keys, dtype=torch.float64)
    return Case(torch.tensor([scores], dtype=torch.float64), vectors[None], places[None], num_keep, options)


KEY_KINDS = ["normal", "clustered", "nearly equal", "equal", "zero", "some zero", "one-hot"]
SCORE_KINDS = ["uniform", "few values", "some zero", "all zero", "all equal", "sharp", "subnormal"]
COORD_KINDS = ["ragged", "duplicate", "scattered"]


@st.composite
def cases(draw: st.DrawFn, key_kinds: list[str] = KEY_KINDS, score_kinds: list[str] = SCORE_KINDS) -> Case:
    batch, count, dim = draw(st.integers(1, 3)), draw(st.integers(1, 60)), draw(st.integers(1, 16))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    score_type, key_type = draw(st.sampled_from(DTYPES)), draw(st.sampled_from(DTYPES))
    smallest_normal = torch.finfo(score_type).smallest_normal
    scores = random_scores(rng, draw(st.sampled_from(score_kinds)), (batch, count), smallest_normal)
    keys = random_keys(rng, draw(st.sampled_from(key_kinds)), batch, count, dim)
    coords = random_coords(rng, draw(st.sampled_from(COORD_KINDS)), batch, count, draw(st.integers(1, 4)))
    options = {
        # No limit is the square root of a non-square: whether such a distance is inside would depend on rounding.
        "distance_limit": draw(st.sampled_from([0.0, 1.0, 1.5, 2.5, 5.0, 7.3, 1e6])),
        "distance_sigma": draw(st.sampled_from([0.1, 1.5, 1e3]) | st.floats(0.2, 20)),
        "similarity_sigma": draw(st.sampled_from([0.05, 1.0]) | st.floats(0.01, 3)),
    }
    types = (torch.from_numpy(scores).to(score_type), torch.from_numpy(keys).to(key_type), torch.from_numpy(coords))
    return Case(*types, draw(st.integers(1, count)), draw(st.sampled_from([{}, options])))


def plain_cases() -> st.SearchStrategy[Case]:
    """Inputs without near-ties: two ways of rounding must then keep the same set."""
    return cases(["normal", "clustered"], ["uniform"]).map(untie)


def untie(case: Case) -> Case:
    # Distinct places and a moderate sigma keep every factor above 0.1, hence every score far from 0 and its ties.
    batch, count = case.scores.shape
    rng = np.random.default_rng(count)
    case.scores = torch.from_numpy(0.5 + rng.random((batch, count)))
    places = np.stack([rng.permutation(144)[:count] for _ in range(batch)])
    case.coords = torch.stack([case.coords[..., 0], *map(torch.from_numpy, np.divmod(places, 12))], dim=-1)
    case.options = {**case.options, **({"distance_sigma": 2.0} if case.options else {})}
    return case


@by_backend
@FUZZ
@given(case=cases())
def test_fuzz_is_explained_by_the_oracle(backend: str, case: Case) -> None:
    case.check(backend)


@by_backend
@FUZZ
@given(case=cases(["one-hot"], ["few values", "some zero", "all zero", "all equal"]))
def test_exact_ties_go_to_the_lower_index(backend: str, case: Case) -> None:
    # Only coinciding tokens are within reach, and one-hot keys are equal or unlike: every factor is exactly 0 or 1.
    case.options = {"distance_limit": 0.0}
    case.check_exactly(backend)
    case.options = {"distance_limit": 2.5}
    case.coords = case.coords * torch.tensor([1, 3, 3])
    case.check_exactly(backend)


@FUZZ
@given(case=plain_cases())
def test_backends_agree(case: Case) -> None:
    results = [case.run(backend).tolist() for backend in BACKENDS]
    assert results[0] == results[1] == results[2]


def clustered_grid(dtype: torch.dtype, num_keep: int) -> Case:
    """24 x 24 patches in 16 regions of alike keys, with peaked scores: the best tokens crowd together."""
    rng = np.random.default_rng(20240607)
    rows, columns = np.divmod(np.arange(576), 24)
    region = rows // 6 * 4 + columns // 6
    keys = rng.normal(size=(2, 16, 64))[:, region] + 0.15 * rng.normal(size=(2, 576, 64))
    scores = softmax(rng.normal(size=(2, 16))[:, region] * 1.5 + 0.7 * rng.normal(size=(2, 576)))
    coords = np.stack([np.zeros(576, dtype=np.int64), rows, columns], axis=-1)
    tensors = torch.from_numpy(scores).to(dtype), torch.from_numpy(keys).to(dtype)
    return Case(*tensors, torch.from_numpy(coords).expand(2, 576, 3), num_keep)


@by_backend
@pytest.mark.parametrize("num_keep", [57, 144, 288])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_llava_sized_grid(backend: str, dtype: torch.dtype, num_keep: int) -> None:
    case = clustered_grid(dtype, num_keep)
    case.check(backend)
    top = case.scores.topk(num_keep).indices.tolist()
    for kept, best, (scores, keys, coords) in zip(case.run(backend).tolist(), top, case.rows(), strict=True):
        assert len(set(kept) - set(best)) > num_keep // 10, "suppression must matter here, or nothing is tested"
        assert explains(best, scores, keys, coords) is not None


# Cases worked by hand: (case, kept). The default sigmas give exp(-1/4.5) = 0.80074 at d = 1, exp(-4/4.5) = 0.41111 at
# d = 2, exp(-16/4.5) = 0.02857 at d = 4, exp(-25/4.5) = 0.00387 at d = 5; and exp(-(1 - cos)^2 / 0.005) for the keys.

ALIKE = [[1.0, 2.0]] * 4
UNIT_95 = [0.95, 0.0975**0.5]  # a unit vector at cosine 0.95 to (1, 0)
LINE = [[0, 0], [0, 1], [0, 10]]
HAND = {
    # 0 first; 1 drops to 0.9 * (1 - 0.80074) = 0.179; 2 is 10 away and stays at 0.5.
    "distant token wins": (row([1.0, 0.9, 0.5], ALIKE[:3], LINE, 2), [0, 2]),
    "0.179 beats 0.17": (row([1.0, 0.9, 0.17], ALIKE[:3], LINE, 2), [0, 1]),
    # cos = 0: exp(-200) leaves 0.9 as it is. cos = -1: exp(-800), so unlike is not the same as alike.
    "orthogonal": (row([1.0, 0.9, 0.5], [[1, 0], [0, 1], [1, 0]], LINE, 2), [0, 1]),
    "opposite": (row([1.0, 0.9, 0.5], [[1, 0], [-1, 0], [1, 0]], LINE, 2), [0, 1]),
    # cos = 0.95: exp(-0.05^2 / 0.005) = 0.60653; 0.9 * (1 - 0.80074 * 0.60653) = 0.46290.
    "0.463 loses to 0.464": (row([1.0, 0.9, 0.464], [[1, 0], UNIT_95, [1, 0]], LINE, 2), [0, 2]),
    "0.463 beats 0.462": (row([1.0, 0.9, 0.462], [[1, 0], UNIT_95, [1, 0]], LINE, 2), [0, 1]),
    # Similarity is of directions: (10, 20) is alike to (1, 2).
    "length is ignored": (row([1.0, 0.9, 0.5], [[1, 2], [10, 20], [1, 2]], LINE, 2), [0, 2]),
    # d = sqrt(3^2 + 4^2) = 5 is inside the limit: 0.5 * (1 - 0.00387) = 0.49807 < 0.499; with 4.99 it stays 0.5.
    "limit is inclusive": (row([1.0, 0.5, 0.499], ALIKE[:3], [[0, 0], [3, 4], [20, 0]], 2), [0, 2]),
    "outside limit": (row([1.0, 0.5, 0.499], ALIKE[:3], [[0, 0], [3, 4], [20, 0]], 2, distance_limit=4.99), [0, 1]),
    # Columns 0, 2, 4, 20. After 0: token 1 has 0.9 * 0.58889 = 0.53, token 2 has 0.95 * 0.97143 = 0.9229 and is next;
    # then token 1 has 0.53 * 0.58889 = 0.312 and loses to 0.4, which it would beat suppressed only once.
    "suppression adds up": (row([1.0, 0.9, 0.95, 0.4], ALIKE, [[0, 0], [0, 2], [0, 4], [0, 20]], 3), [0, 2, 3]),
    # The zero key has cosine 0 to everything, itself included: nothing is suppressed even at d = 0.
    "zero keys": (row([1.0, 0.9, 0.5], [[0, 0], [0, 0], [1, 0]], [[0, 0], [0, 0], [0, 9]], 2), [0, 1]),
    # With similarity_sigma = 1 that cosine gives exp(-0.5) = 0.60653: 0.9 * (1 - 0.60653) = 0.354 < 0.36.
    "zero keys, wide sigma": (
        row([1.0, 0.9, 0.36], [[0, 0], [0, 0], [1, 0]], [[0, 0], [0, 0], [0, 9]], 2, similarity_sigma=1.0),
        [0, 2],
    ),
    # distance_sigma = 0.5: exp(-1 / 0.5) = 0.13534, 0.9 * 0.86466 = 0.778 > 0.5.
    "narrow distance sigma": (row([1.0, 0.9, 0.5], ALIKE[:3], LINE, 2, distance_sigma=0.5), [0, 1]),
    # Same place, same key: the factor is exactly 0, so after token 1 all are 0 and the lowest indices follow.
    "all suppressed to 0": (row([0.5, 1.0, 0.25, 1.0], [[1, 0]] * 4, [[2, 2]] * 4, 3), [0, 1, 2]),
    "0 loses to anything": (row([1.0, 1.0, 5e-324], [[1, 0]] * 3, [[0, 0], [0, 0], [0, 9]], 2), [0, 2]),
    "all zero": (row([0.0, 0.0, 0.0, 0.0], ALIKE, [[0, i] for i in range(4)], 2), [0, 1]),
    "negative zero": (row([-0.0, 0.0, -0.0], ALIKE[:3], LINE, 2), [0, 1]),
    # Same keys, same rows and columns, another grid: equal and untouched scores, so the lowest index.
    "another grid": (row([0.3, 1.0, 0.9, 0.9], ALIKE, [[4, 0, 0], [4, 0, 0], [9, 0, 0], [4, 0, 20]], 2), [1, 2]),
    "one token": (row([0.0], [[0.0]], [[0, 0]], 1), [0]),
}


@by_backend
@pytest.mark.parametrize("name", HAND)
def test_hand_worked(backend: str, name: str) -> None:
    case, kept = HAND[name]
    assert sorted(greedy(*case.rows()[0], case.num_keep, **case.options)) == kept, "the oracle is wrong"
    assert explains(kept, *case.rows()[0], **case.options) is None, "the oracle is wrong"
    assert case.run(backend).tolist() == [kept]


def test_oracle_rejects_wrong_sets() -> None:
    case, _ = HAND["distant token wins"]
    scores, keys, coords = case.rows()[0]
    assert greedy(scores, keys, coords, 3) == [0, 2, 1]
    assert explains([0, 1], scores, keys, coords) is not None
    assert explains([1, 2], scores, keys, coords) is not None
    assert explains([0, 0], scores, keys, coords) is not None
    assert explains([0, 3], scores, keys, coords) is not None
    tied = np.array([0.5, 0.5, 0.5])  # no rounding is involved in the first pick, so only index 0 may be first
    assert explains([1], tied, keys, coords) is not None


@by_backend
@by_dtype
def test_rounded_input_is_taken_as_it_is(backend: str, dtype: torch.dtype) -> None:
    # Neighbours one unit in the last place apart must not become a tie, and equal ones must stay a tie.
    step = torch.finfo(dtype).eps
    scores = torch.tensor([[1.0, 1.0 + step, 1.0 + step, 1.0 + 2 * step]], dtype=dtype)
    case = Case(scores, torch.ones(1, 4, 2, dtype=dtype), torch.tensor([[[i, 0, 0] for i in range(4)]]), 2)
    assert case.run(backend).tolist() == [[1, 3]]


# Duplicates, underflow, grids


@by_backend
@by_dtype
@pytest.mark.parametrize("keys", ["equal", "clustered", "zero", "one-hot"])
def test_no_duplicates_when_scores_underflow(backend: str, dtype: torch.dtype, keys: str) -> None:
    # Attention of one sharp head: most weights round to 0 in 16 bits, and suppression takes the others there too.
    rng = np.random.default_rng(7)
    scores = torch.from_numpy(softmax(rng.normal(size=(2, 200)) * 60)).to(dtype)
    vectors = torch.from_numpy(random_keys(rng, keys, 2, 200, 8)).to(dtype)
    coords = torch.from_numpy(random_coords(rng, "duplicate", 2, 200, 2))
    assert dtype == torch.float64 or (scores == 0).any()
    for num_keep in (1, 50, 199, 200):
        Case(scores, vectors, coords, num_keep).check(backend)


@by_backend
@by_dtype
def test_repeated_suppression_reaches_zero(backend: str, dtype: torch.dtype) -> None:
    # Factors of d^2 / 2e6, i.e. 1e-6 to 1e-4, bring every score below 5e-324 within a hundred picks.
    coords = torch.tensor([[[0, i % 15, i // 15] for i in range(300)]])
    options = {"distance_sigma": 1e3, "distance_limit": 1e6}
    scores = torch.from_numpy(np.random.default_rng(3).random((1, 300))).to(dtype)
    for num_keep in (40, 150, 300):
        Case(scores, torch.ones(1, 300, 4, dtype=dtype), coords, num_keep, options).check(backend)


@by_backend
@FUZZ
@given(case=plain_cases())
def test_grids_do_not_see_each_other(backend: str, case: Case) -> None:
    # Each token is alone in its grid, all with the same key at the same place: plain top-k.
    case.coords[..., 0] = torch.arange(case.coords.shape[1]).flip(0) * 1000 - 7
    case.coords[..., 1:] = 3
    case.keys = torch.ones_like(case.keys)
    expected = case.scores.topk(case.num_keep).indices.sort().values
    assert torch.equal(case.run(backend), expected)


# Invariances


@by_backend
@FUZZ
@given(case=plain_cases(), seed=st.integers(0, 2**16))
def test_invariances(backend: str, case: Case, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    count, kept = case.scores.shape[1], case.run(backend)
    powers = 2.0 ** torch.randint(-40, 40, (*case.keys.shape[:2], 1), generator=rng).double()
    assert torch.equal(case.run(backend, scores=case.scores * 2.0**-90), kept)
    assert torch.equal(case.run(backend, scores=case.scores * 2.0**90), kept)
    assert torch.equal(case.run(backend, keys=case.keys.double() * powers), kept)
    assert torch.equal(case.run(backend, keys=case.keys.double() * 2.0**-120), kept)

    moved = case.coords.clone()
    moved[moved[..., 0] == moved[0, 0, 0]] += torch.tensor([0, 1000, -77])
    moved[..., 0] = 12345 - 3 * moved[..., 0]
    assert torch.equal(case.run(backend, coords=moved), kept)
    assert torch.equal(case.run(backend, coords=case.coords[..., [0, 2, 1]]), kept)

    order = torch.randperm(count, generator=rng)
    shuffled = case.run(backend, scores=case.scores[:, order], keys=case.keys[:, order], coords=case.coords[:, order])
    assert torch.equal(order[shuffled].sort(dim=1).values, kept)

    for b in range(len(kept)):
        one = case.run(backend, scores=case.scores[b : b + 1], keys=case.keys[b : b + 1], coords=case.coords[b : b + 1])
        assert torch.equal(one, kept[b : b + 1])
    if case.num_keep < count:
        more = case.run(backend, num_keep=case.num_keep + 1)
        assert all(set(a) < set(b) for a, b in zip(kept.tolist(), more.tolist(), strict=True))


@by_backend
@pytest.mark.parametrize("integer", [torch.uint8, torch.int16, torch.int32], ids=str)
def test_any_integer_coordinates(backend: str, integer: torch.dtype) -> None:
    # Differences of unsigned rows would wrap around, and 16 rows squared is 0 in 8 bits: a coinciding token.
    case = clustered_grid(torch.float32, 60)
    case.keys = torch.ones_like(case.keys)
    assert torch.equal(case.run(backend, coords=case.coords.to(integer)), case.run(backend))


@by_backend
@by_dtype
def test_layout_of_the_inputs_does_not_matter_and_they_are_left_alone(backend: str, dtype: torch.dtype) -> None:
    case = clustered_grid(dtype, 100)
    scores, keys, coords = case.scores.clone(), case.keys.clone(), case.coords.clone()
    kept = case.run(backend, scores=scores, keys=keys, coords=coords)
    assert torch.equal(scores, case.scores)
    assert torch.equal(keys, case.keys)
    assert torch.equal(coords, case.coords)
    strided = {
        "scores": torch.stack([scores, -scores], dim=-1)[..., 0],
        "keys": keys.permute(2, 1, 0).contiguous().permute(2, 1, 0),
        "coords": torch.cat([coords, coords - 1], dim=-1)[..., :3],
    }
    assert not any(x.is_contiguous() for x in strided.values())
    assert torch.equal(case.run(backend, **strided), kept)
    with torch.inference_mode():
        assert torch.equal(case.run(backend), kept)
    assert torch.equal(case.run(backend, scores=scores.requires_grad_(), keys=keys.requires_grad_()), kept)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_result_is_on_the_inputs_device(backend: str) -> None:
    case = clustered_grid(torch.bfloat16, 144)
    on_cuda = {name: getattr(case, name).cuda() for name in ("scores", "keys", "coords")}
    for kept, arrays in zip(case.run(backend, **on_cuda).tolist(), case.rows(), strict=True):
        assert explains(kept, *arrays) is None


# Errors: each message must contain the offending value, so that it can be found in a traceback


def changed(value: float) -> torch.Tensor:
    scores = torch.full((2, 13), 0.5)
    scores[1, 7] = value
    return scores


ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "num_keep 0": ({"num_keep": 0}, r"(?<!\d)0(?!\d)"),
    "num_keep -3": ({"num_keep": -3}, "-3"),
    "num_keep N + 1": ({"num_keep": 14}, "14"),
    "scores 1-d": ({"scores": torch.ones(13)}, "13"),
    "scores 3-d": ({"scores": torch.ones(2, 13, 97)}, "97"),
    "keys 2-d": ({"keys": torch.ones(2, 97)}, "97"),
    "keys batch": ({"keys": torch.ones(97, 13, 4)}, "97"),
    "keys tokens": ({"keys": torch.ones(2, 97, 4)}, "97"),
    "coords 2-d": ({"coords": torch.zeros(97, 3, dtype=torch.long)}, "97"),
    "coords batch": ({"coords": torch.zeros(97, 13, 3, dtype=torch.long)}, "97"),
    "coords tokens": ({"coords": torch.zeros(2, 97, 3, dtype=torch.long)}, "97"),
    "coords last": ({"coords": torch.zeros(2, 13, 97, dtype=torch.long)}, "97"),
    "negative score": ({"scores": changed(-0.25)}, r"-0\.25"),
    "nan score": ({"scores": changed(float("nan"))}, "(?i)nan"),
    "inf score": ({"scores": changed(float("inf"))}, "(?i)inf"),
    "-inf score": ({"scores": changed(float("-inf"))}, "(?i)-inf"),
    "half negative": ({"scores": changed(-0.25).half()}, r"-0\.25"),
    "distance_sigma 0": ({"distance_sigma": 0.0}, r"distance_sigma.*(?<![\d.])0(\.0)?(?!\d)"),
    "distance_sigma < 0": ({"distance_sigma": -1.75}, r"distance_sigma.*-1\.75"),
    "similarity_sigma 0": ({"similarity_sigma": 0.0}, r"similarity_sigma.*(?<![\d.])0(\.0)?(?!\d)"),
    "similarity_sigma < 0": ({"similarity_sigma": -1.75}, r"similarity_sigma.*-1\.75"),
    "distance_limit < 0": ({"distance_limit": -0.75}, r"distance_limit.*-0\.75"),
    "backend": ({"backend": "fastest"}, "fastest"),
}


@by_backend
@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_the_value(backend: str, name: str) -> None:
    changes, pattern = ERRORS[name]
    good = {"scores": changed(0.25), "keys": torch.ones(2, 13, 4), "coords": torch.zeros(2, 13, 3, dtype=torch.long)}
    adaptive_nms(**good, num_keep=13, backend=backend)
    arguments = {**good, "num_keep": 5, "backend": backend, **changes}
    with pytest.raises(ValueError, match=pattern):
        adaptive_nms(**arguments)
