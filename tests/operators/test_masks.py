"""Masks: counts, declared against drawn probabilities, ACS geometry, and the held-out weights as an identity."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mri_ambient.operators.masks import (
    MaskPattern,
    default_acs,
    equispaced_mask,
    fastmri_mask,
    poisson_mask,
    random_mask,
)
from mri_ambient.operators.splitting import acs_mask, acs_width, heldout_weights, split_mask

LINE_KINDS = ("random", "bernoulli", "equispaced", "gaussian")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(pattern: MaskPattern, shape: tuple[int, int], count: int, seed: int = 0) -> Tensor:
    generator = seeded(seed)
    return torch.stack([pattern.sample(shape, generator) for _ in range(count)])


@pytest.mark.parametrize(
    ("width", "accel", "expected"), [(320, 4, 26), (320, 8, 13), (320, 2, 26), (64, 8, 8), (5, 4, 5)]
)
def test_default_acs(width: int, accel: float, expected: int) -> None:
    assert default_acs(width, accel) == expected


@pytest.mark.parametrize("kind", ["random", "gaussian"])
@pytest.mark.parametrize(
    ("width", "accel", "acs"), [(160, 4, None), (161, 3.7, 12), (47, 2, 9), (320, 12, None), (64, 6, 0)]
)
def test_fixed_count_holds_the_requested_lines(kind: str, width: int, accel: float, acs: int | None) -> None:
    generator = seeded(1)
    for _ in range(20):
        mask = MaskPattern(kind, accel, acs).sample((4, width), generator)
        assert mask.dtype == torch.bool
        assert mask.shape == (width,)
        assert int(mask.sum()) == round(width / accel)
        assert acs_width(mask) >= (default_acs(width, accel) if acs is None else acs)


@pytest.mark.parametrize("kind", ["bernoulli", "equispaced"])
def test_varying_count_has_the_requested_mean(kind: str) -> None:
    counts = draw(MaskPattern(kind, 4), (8, 160), 600).sum(1).double()
    assert abs(counts.mean() - 40) < 5 * counts.std() / math.sqrt(len(counts)) + 1e-9
    assert counts.std() > 0
    if kind == "equispaced":
        assert (counts - 40).abs().max() <= 2


@pytest.mark.parametrize("kind", LINE_KINDS)
@pytest.mark.parametrize(("width", "accel", "acs"), [(48, 3, 6), (51, 4.5, 5), (40, 1.25, 8)])
def test_declared_probability_is_the_drawn_frequency(kind: str, width: int, accel: float, acs: int) -> None:
    pattern, count = MaskPattern(kind, accel, acs), 3000
    p = pattern.probability((4, width))
    assert p.dtype == torch.float32
    assert p.shape == (width,)
    assert p.min() > 0
    assert p.sum() == pytest.approx(round(width / accel), abs=1e-3)
    centre = acs_mask(torch.ones(width), acs)
    assert int(centre.sum()) == acs
    assert bool((p[centre] == 1).all())
    drawn = draw(pattern, (4, width), count).float().mean(0)
    sigma = (p * (1 - p) / count).sqrt() + 1e-6
    assert ((drawn - p).abs() / sigma).max() < 4.5


def test_equispaced_lines_are_equally_spaced() -> None:
    mask = equispaced_mask(200, 4, 0, generator=seeded(2))
    assert torch.diff(mask.nonzero()[:, 0]).unique().tolist() == [4]
    gaps = torch.diff(equispaced_mask(200, 4, 16, generator=seeded(2)).nonzero()[:, 0]).unique().tolist()
    assert set(gaps) <= {
        1,
        2,
        3,
        4,
        5,
        6,
    }  # 184 / 34 = 5.4 outside, 1 in the ACS, any where they meet
    assert {5, 6} <= set(gaps)


def test_gaussian_density_falls_from_the_centre_to_the_edge() -> None:
    p = MaskPattern("gaussian", 4, 10).probability((4, 101))
    outside = p[56:]
    assert bool((torch.diff(outside) <= 0).all())
    assert p[-1] / p[56] == pytest.approx(math.exp(-0.5 * (50**2 - 6**2) / 25.25**2), rel=1e-4)


def test_gaussian_lines_are_drawn_without_regard_to_their_neighbours() -> None:
    pattern, count = MaskPattern("gaussian", 3, 6), 2000
    drawn, p = draw(pattern, (4, 48), count), pattern.probability((4, 48))
    pairs = (drawn[:, 28:-1] & drawn[:, 29:]).float().sum()
    assert pairs / count == pytest.approx(float((p[28:-1] * p[29:]).sum()), rel=0.15)


@pytest.mark.parametrize(("shape", "accel"), [((64, 48), 4), ((45, 61), 6.5), ((24, 24), 3)])
def test_poisson_mask_has_exact_count_and_acs(shape: tuple[int, int], accel: float) -> None:
    mask = poisson_mask(shape, accel, 8, generator=seeded(3))
    assert mask.shape == shape
    assert mask.dtype == torch.bool
    assert int(mask.sum()) == round(shape[0] * shape[1] / accel)
    assert acs_width(mask) >= 8


def test_poisson_samples_keep_their_distance() -> None:
    mask = poisson_mask((96, 96), 8, 8, generator=seeded(4)).clone()
    mask[20:76, 20:76] = False  # the density is low outside
    points = mask.nonzero().float()
    nearest = torch.cdist(points, points).fill_diagonal_(1e9).amin(1)
    independent = torch.rand(96, 96, generator=seeded(5)) < len(points) / (96**2 - 56**2)
    independent[20:76, 20:76] = False
    others = independent.nonzero().float()
    assert (nearest < 1.5).float().mean() < 0.1
    assert (torch.cdist(others, others).fill_diagonal_(1e9).amin(1) < 1.5).float().mean() > 0.15


def test_poisson_probability_is_close_to_the_drawn_frequency() -> None:
    pattern, shape = MaskPattern("poisson", 4, 8), (48, 40)
    p = pattern.probability(shape)
    assert tuple(p.shape) == shape
    assert p.min() > 0.02
    assert p.max() == 1
    assert p.sum() == pytest.approx(480, rel=1e-3)
    drawn = draw(pattern, shape, 40, seed=9).float().mean(0)
    size = torch.maximum((torch.arange(48) - 24).abs()[:, None], (torch.arange(40) - 20).abs())
    for inner, outer in ((6, 10), (10, 15), (15, 19)):
        ring = (size >= inner) & (size < outer)
        assert p[ring].mean() == pytest.approx(float(drawn[ring].mean()), rel=0.12)
    p[0, 0] = 7.0
    assert pattern.probability(shape)[0, 0] < 1  # the remembered estimate is not handed out for writing


@pytest.mark.parametrize("kind", [*LINE_KINDS, "poisson"])
def test_sample_is_reproducible_and_depends_on_the_generator_only(kind: str) -> None:
    pattern, shape = MaskPattern(kind, 4, 6), (40, 48)
    torch.manual_seed(0)
    first = pattern.sample(shape, seeded(7))
    torch.manual_seed(1)
    assert torch.equal(first, pattern.sample(shape, seeded(7)))
    assert any(not torch.equal(first, pattern.sample(shape, seeded(seed))) for seed in (8, 9, 10))


@pytest.mark.parametrize("kind", [*LINE_KINDS, "poisson"])
def test_acceleration_one_acquires_everything(kind: str) -> None:
    pattern = MaskPattern(kind, 1)
    for shape in ((12, 30), (31, 31)):
        assert bool(pattern.sample(shape, seeded(0)).all())
        if kind != "poisson":
            assert bool((pattern.probability(shape) == 1).all())


@pytest.mark.parametrize("kind", LINE_KINDS)
def test_one_line_beyond_the_acs_is_left_when_the_budget_is_the_acs(kind: str) -> None:
    pattern = MaskPattern(kind, 4, 10)
    p = pattern.probability((4, 40))
    assert p.sum() == pytest.approx(11, abs=1e-4)
    assert p.min() > 0.005
    if kind in ("random", "gaussian"):
        assert int(pattern.sample((4, 40), seeded(0)).sum()) == 11


@pytest.mark.parametrize("kind", [*LINE_KINDS, "poisson"])
@pytest.mark.parametrize(("accel", "acs"), [(0.5, 4), (float("nan"), 4), (float("inf"), 4), (4, 41), (4, -1), (8, 30)])
def test_impossible_requests_are_one_sentence(kind: str, accel: float, acs: int) -> None:
    with pytest.raises(ValueError, match=r"^(The|An|Acceleration|-1|41) [^\n]*\.$"):
        MaskPattern(kind, accel, acs).sample((40, 40), seeded(0))


def test_unknown_kind_and_wrong_matrix_are_refused() -> None:
    with pytest.raises(ValueError, match="spiral"):
        MaskPattern("spiral", 4)
    with pytest.raises(ValueError, match="matrix"):
        poisson_mask((40,), 4)
    with pytest.raises(ValueError, match="Poisson-disc"):
        poisson_mask((32, 32), 1.05, 4, generator=seeded(0))


@pytest.mark.parametrize("name", ["random", "equispaced", "equispaced_fraction", "magic", "magic_fraction"])
def test_fastmri_masks_come_from_fastmri(name: str) -> None:
    from fastmri.data.subsample import create_mask_for_mask_type

    seed = tuple(map(ord, "file.h5"))
    mask = fastmri_mask(name, 368, 4, 0.08, seed)
    theirs, low = create_mask_for_mask_type(name, [0.08], [4])((15, 640, 368, 2), seed=seed)
    assert mask.dtype == torch.bool
    assert torch.equal(mask, theirs.flatten() == 1)
    assert acs_width(mask) >= low


def test_fastmri_mask_errors_are_clear() -> None:
    with pytest.raises(ValueError, match="nonsense"):
        fastmri_mask("nonsense", 64, 4, 0.08, 0)
    with pytest.raises(ValueError, match="acceleration 0"):
        fastmri_mask("equispaced", 64, 0, 0.08, 0)


@pytest.mark.parametrize("width", [16, 17])
def test_acs_is_the_largest_centred_block(width: int) -> None:
    for lines in range(width + 1):
        mask = torch.zeros(width, dtype=torch.bool)
        mask[width // 2 - lines // 2 : width // 2 - lines // 2 + lines] = True
        assert acs_width(mask) == lines
        assert torch.equal(acs_mask(mask), mask)
    lopsided = np.zeros(width)
    lopsided[width // 2 - 2 :] = 1
    assert acs_width(lopsided) == 5  # a block of 6 centred lines would reach one line further left
    assert acs_width(np.ones((width, 12))) == 12


def test_acs_of_two_dimensional_masks() -> None:
    mask = torch.zeros(20, 15, dtype=torch.bool)
    mask[7:13, 3:12] = True
    assert acs_width(mask) == 6
    block = acs_mask(mask)
    assert int(block.sum()) == 36
    assert bool(block[7:13, 4:10].all())
    mask[9, 8] = False
    assert acs_width(mask) == 2
    assert int(acs_mask(mask, 3).sum()) == 9


@pytest.mark.parametrize("shape", [(64,), (20, 24)])
def test_split_keeps_a_subset_with_the_acs(shape: tuple[int, ...]) -> None:
    mask = torch.rand(shape, generator=seeded(0)) < 0.5
    mask |= acs_mask(mask, 6)
    generator = seeded(1)
    off_centre = mask & ~acs_mask(mask)
    kept_share = []
    for _ in range(400):
        kept = split_mask(mask, 0.3, generator=generator)
        assert not bool((kept & ~mask).any())
        assert bool(kept[acs_mask(mask)].all())
        kept_share.append(float((kept & off_centre).sum() / off_centre.sum()))
    assert np.mean(kept_share) == pytest.approx(0.3, abs=5 * math.sqrt(0.21 / 400 / int(off_centre.sum())))
    assert torch.equal(split_mask(mask, 1.0), mask)
    assert torch.equal(split_mask(mask, 0.0), acs_mask(mask))
    assert torch.equal(split_mask(mask.numpy(), 0.3, generator=seeded(5)), split_mask(mask, 0.3, generator=seeded(5)))
    with pytest.raises(ValueError, match="probability"):
        split_mask(mask, 1.5)


def test_fixed_count_weights_are_exact_for_every_kept_set() -> None:
    """Enumerate all masks of 4 among 7 off-centre lines: for every kept set the mean weight of each line is 1."""
    width, acs, padding = 13, 4, (1, 1)
    centre = acs_mask(torch.ones(width), acs)
    places = [j for j in range(1, width - 1) if not centre[j]]
    for kept_count in range(4):
        for kept_lines in itertools.combinations(places, kept_count):
            kept = centre.clone()
            kept[list(kept_lines)] = True
            weights = []
            for rest in itertools.combinations(sorted(set(places) - set(kept_lines)), 4 - kept_count):
                mask = kept.clone()
                mask[list(rest)] = True
                weights.append(heldout_weights(mask, kept, acs=acs, padding=padding))
            mean = torch.stack(weights).mean(0)
            assert mean[1:-1] == pytest.approx(1.0, abs=1e-5)
            assert bool((mean[[0, -1]] == 0).all())


def weighted_minus_full_error(bernoulli: bool, variant: str, draws: int = 4000) -> float:
    """z-score of E[measured error] - E[full error] on 40 columns, 3 + 2 of them zero-padded, q = 0.4."""
    inner, left, right, acs, keep = 35, 3, 2, 6, 0.4
    generator = seeded(11)
    profile = torch.rand(left + inner + right, generator=generator) + 0.2
    profile[:left] = profile[left + inner :] = 0  # nothing is ever acquired there: no error is counted
    pattern = MaskPattern("bernoulli" if bernoulli else "random", 2.2, acs)
    pad = torch.nn.ConstantPad1d((left, right), 0)
    probability = pad(pattern.probability((1, inner)))
    options: dict[str, dict[str, Any]] = {
        "unweighted": {"probability": torch.ones(40), "keep": 0.0},
        "hypergeometric": {"padding": (left, right)},
        "padding forgotten": {},
        "bernoulli": {"probability": probability, "keep": keep},
        "wrong keep": {"probability": probability, "keep": 0.55},
        "wrong probability": {"probability": probability.clamp(min=1e-3).sqrt(), "keep": keep},
    }
    difference = []
    for _ in range(draws):
        mask = pad(pattern.sample((1, inner), generator).float()) > 0
        kept = split_mask(mask, keep, generator=generator, acs=acs)
        weights = heldout_weights(mask, kept, acs=acs, **options[variant])
        error = profile / int(kept.sum()) ** 2  # a network does better the more lines it sees
        difference.append(float((weights * error).sum() - error.sum()))
    return float(np.mean(difference) / np.std(difference) * math.sqrt(draws))


@pytest.mark.parametrize(("bernoulli", "variant"), [(False, "hypergeometric"), (True, "bernoulli")])
def test_weighted_error_is_the_full_error(bernoulli: bool, variant: str) -> None:
    assert abs(weighted_minus_full_error(bernoulli, variant)) < 4


@pytest.mark.parametrize(
    ("bernoulli", "variant"),
    [
        (False, "unweighted"),
        (False, "padding forgotten"),
        (False, "bernoulli"),
        (True, "unweighted"),
        (True, "wrong keep"),
        (True, "wrong probability"),
    ],
)
def test_broken_weights_fail_the_same_check(bernoulli: bool, variant: str) -> None:
    assert abs(weighted_minus_full_error(bernoulli, variant)) > 6


@pytest.mark.parametrize(("acs", "expected"), [(6, 1.0), (None, 0.0)])
def test_detected_acs_starves_the_line_next_to_it(acs: int | None, expected: float) -> None:
    """Line 23 of 40 touches the ACS of 6: taken for ACS whenever it was acquired, it would never be held out."""
    generator, weight, hidden = seeded(13), 0.0, 0
    for _ in range(1500):
        mask = random_mask(40, 2.5, 6, generator=generator)
        kept = split_mask(mask, 0.5, generator=generator, acs=acs)
        if not kept[23]:
            weight += float(heldout_weights(mask, kept, acs=acs)[23])
            hidden += 1
    assert weight / hidden == pytest.approx(expected, abs=0.15)


def test_poisson_weights_balance_on_average() -> None:
    """With declared probabilities the identity holds on average over the kept set for any pattern."""
    pattern, shape, generator = MaskPattern("poisson", 4, 8), (48, 40), seeded(12)
    p = pattern.probability(shape)
    total = torch.zeros(shape)
    for _ in range(40):
        mask = pattern.sample(shape, generator)
        kept = split_mask(mask, 0.5, generator=generator, acs=8)
        weights = heldout_weights(mask, kept, probability=p, keep=0.5, acs=8)
        total += weights.where(~kept, 0) - (~kept).float()
    assert total.mean() / 40 == pytest.approx(0, abs=0.04)


def test_weights_where_everything_was_acquired_are_one() -> None:
    mask = torch.ones(32, dtype=torch.bool)
    kept = split_mask(mask, 0.5, generator=seeded(0), acs=8)
    assert not bool(kept.all())
    assert bool((heldout_weights(mask, kept, acs=8) == 1).all())
    ones = torch.ones(32)
    assert bool((heldout_weights(mask, kept, acs=8, probability=ones, keep=0.5) == 1).all())


def test_weights_of_acs_lines_are_one_even_if_held_out() -> None:
    mask = random_mask(32, 2, 6, generator=seeded(0))
    kept = split_mask(mask, 0.5, generator=seeded(1), acs=6)
    weights = heldout_weights(mask, kept, acs=6)
    kept[15:17] = False
    assert torch.equal(heldout_weights(mask, kept, acs=6), weights)


def test_weights_refuse_what_makes_no_sense() -> None:
    mask = random_mask(32, 2, 4, generator=seeded(0))
    kept = split_mask(mask, 0.5, generator=seeded(1), acs=4)
    p = MaskPattern("random", 2, 4).probability((1, 32))
    with pytest.raises(ValueError, match="subset"):
        heldout_weights(mask, torch.ones(32))
    with pytest.raises(ValueError, match="keep"):
        heldout_weights(mask, kept, probability=p, acs=4)
    with pytest.raises(ValueError, match="keep"):
        heldout_weights(mask, kept, probability=p, keep=1.0, acs=4)
    with pytest.raises(ValueError, match="probability above 0"):
        heldout_weights(mask, kept, probability=torch.zeros(32), keep=0.5, acs=4)
    with pytest.raises(ValueError, match="probability"):
        heldout_weights(mask, kept, probability=p[:5], keep=0.5, acs=4)
    with pytest.raises(ValueError, match="zero-padded"):
        heldout_weights(mask, kept, acs=4, padding=(20, 0))
