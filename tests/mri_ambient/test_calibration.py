"""Noise, scale and maps of a scan: whatever the unit, the coil noise and the acceleration."""

import pytest
import torch
from wrapped import wrap

from mri_ambient.calibration import calibrate, map_sets, prepare_slice
from mri_ambient.errors import InputError
from mri_ambient.operators import MaskPattern
from mri_ambient.operators.sense import SoftSense
from mri_ambient.phantoms import phantom_volume
from mri_ambient.scan import Scan
from mri_ambient.simulate import simulate_scan

NOISE = 0.02


def phantom(pattern=None, noise_std=NOISE, slices=2):
    return simulate_scan(phantom_volume(slices, (96, 96), seed=1), coils=6, pattern=pattern, noise_std=noise_std)


def with_kspace(scan, kspace, noise_std):
    return Scan.from_arrays(kspace, scan.mask, noise_std=noise_std)


def condition(matrix):
    """Ratio of the largest to the smallest eigenvalue."""
    values = torch.linalg.eigvalsh(matrix)
    return float(values[-1] / values[0])


def test_scale_follows_the_unit_and_not_the_acceleration():
    scan = phantom()
    reference = calibrate(scan).scale
    assert calibrate(with_kspace(scan, scan.kspace * 1e-7, NOISE * 1e-7)).scale == pytest.approx(
        reference * 1e-7, rel=1e-4
    )
    for accel in (2, 4, 6):
        assert calibrate(phantom(MaskPattern("random", accel))).scale == pytest.approx(reference, rel=0.1)


def test_prior_units_are_of_order_one():
    scan = phantom()
    item = prepare_slice(scan, 0, calibrate(scan))
    assert 0.3 < float(item.operator.adjoint(item.kspace).abs().quantile(0.99)) < 1.5
    assert item.noise_std == pytest.approx(NOISE / item.scale)


def test_coloured_coil_noise_is_whitened_without_changing_the_image():
    generator = torch.Generator().manual_seed(0)
    clean = phantom(noise_std=0.0)
    colour = torch.eye(6) + 0.3 * torch.randn(6, 6, generator=generator)
    noise = torch.view_as_complex(torch.randn(*clean.shape, 2, generator=generator))
    noisy = clean.kspace + 0.1 * torch.einsum("dc,scyx->sdyx", colour.to(torch.complex64), noise)
    scan = Scan.from_arrays(noisy)
    calibration = calibrate(scan)
    assert calibration.whitening is not None
    whitened = torch.einsum("dc,scyx->sdyx", calibration.whitening.to(torch.complex64), scan.kspace - clean.kspace)
    covariance = torch.einsum("scyx,sdyx->cd", whitened, whitened.conj()) / (2 * 96 * 96)
    before = torch.einsum("dc,ec->de", colour, colour)
    assert condition(covariance) < 1.35 < condition(before)
    assert float(covariance.diagonal().real.mean()) == pytest.approx(2 * calibration.noise_std**2, rel=0.1)
    given = calibrate(scan, noise_std=0.5)
    assert given.whitening is None
    assert given.noise_std == 0.5


def test_scans_without_a_centre_or_without_signal_there_are_refused():
    mask = torch.ones(96, dtype=torch.bool)
    mask[46] = False
    with pytest.raises(InputError, match="8"):
        calibrate(phantom().undersample(mask))
    kspace = torch.zeros(1, 2, 48, 48, dtype=torch.complex64)
    kspace[..., 0, :] = 1  # far from the centre along the readout
    with pytest.raises(InputError, match="zero in every slice"):
        calibrate(Scan.from_arrays(kspace, torch.ones(48), noise_std=0.1))


def test_maps_reach_the_anatomy_at_few_centre_lines():
    full = phantom(slices=1)
    inside = full.read_target(0) > 0.2
    for accel in (4, 8):
        scan = phantom(MaskPattern("random", accel), slices=1)
        support = prepare_slice(scan, 0, calibrate(scan)).operator.sensitivity_maps.abs().amax(0) > 0
        assert float((support & inside).sum() / inside.sum()) > 0.95


class TestMapSets:
    """A phantom of 67 columns in fields of view of 96 and 55."""

    @pytest.mark.parametrize(("width", "expected"), [(96, 1), (55, 2)])
    @pytest.mark.parametrize("accel", [1, 2, 3])
    def test_two_where_the_object_is_larger_than_the_field_of_view(self, width, expected, accel):
        mask = MaskPattern("random", accel).sample((96, width), torch.Generator().manual_seed(1))
        scan = wrap(phantom(noise_std=0.0, slices=1), width, mask, NOISE)
        assert map_sets(scan, calibrate(scan)) == expected
        spoilt = with_kspace(scan, 1e-6 * scan.kspace, 1e-6 * NOISE)
        assert map_sets(spoilt, calibrate(spoilt)) == expected

    @pytest.mark.parametrize("kind", ["equispaced", "poisson"])
    @pytest.mark.parametrize("noise_std", [0.0, 0.02, 0.1])
    @pytest.mark.parametrize("accel", [2, 6])
    def test_one_on_ordinary_scans(self, kind, noise_std, accel):
        scan = phantom(MaskPattern(kind, accel), noise_std, slices=1)
        assert map_sets(scan, calibrate(scan)) == 1

    def test_few_centre_lines_do_not_ask_for_two(self):
        volume = phantom_volume(1, (128, 128), seed=0)
        scan = simulate_scan(volume, coils=16, pattern=MaskPattern("random", 8), noise_std=0.02)
        assert map_sets(scan, calibrate(scan)) == 1

    def test_one_on_anatomy(self, data_dir):
        from mri_ambient.volumes import load_volume

        volume = load_volume(data_dir / "open_ms" / "patient12" / "study1_T1W.nii.gz")
        for accel, noise_std in ((4, 0.02), (12, 0.02), (4, 0.1)):
            scan = simulate_scan(
                volume, matrix=160, pattern=MaskPattern("random", accel), noise_std=noise_std, slices=[24]
            )
            assert map_sets(scan, calibrate(scan)) == 1

    def test_one_on_a_scan(self, data_dir):
        from mri_ambient.scan import load_scan

        scan = load_scan(data_dir / "brain8" / "brain8.h5")
        assert map_sets(scan, calibrate(scan)) == 1

    @pytest.mark.parametrize(("empty", "expected"), [(1, 2), (2, 1)])
    def test_most_of_the_slices_decide(self, empty, expected):
        mask = torch.ones(55, dtype=torch.bool)
        kspace = wrap(phantom(noise_std=0.0, slices=1), 55, mask, NOISE).kspace.expand(3, -1, -1, -1).clone()
        kspace[:empty] = 0
        scan = Scan.from_arrays(kspace, mask, noise_std=NOISE)
        assert map_sets(scan, calibrate(scan)) == expected

    def test_one_coil_has_one_set(self):
        scan = wrap(phantom(noise_std=0.0, slices=1), 55, torch.ones(55, dtype=torch.bool), NOISE)
        single = with_kspace(scan, scan.kspace[:, :1], NOISE)
        assert map_sets(single, calibrate(single)) == 1

    def test_slices_are_prepared_with_as_many_as_asked_for(self):
        scan = wrap(phantom(noise_std=0.0, slices=1), 55, torch.ones(55, dtype=torch.bool), NOISE)
        one, two = (prepare_slice(scan, 0, calibrate(scan), sets=sets) for sets in (1, 2))
        assert one.operator.image_shape == (96, 55)
        assert isinstance(two.operator, SoftSense)
        assert two.operator.image_shape == (96, 110)
        assert torch.equal(one.kspace, two.kspace)


def test_a_silent_coil_is_named_when_the_noise_must_be_estimated():
    scan = phantom()
    kspace = scan.kspace.clone()
    kspace[:, 2] = 0
    with pytest.raises(InputError, match=r"cannot be estimated .*--noise"):
        calibrate(Scan.from_arrays(kspace))
    assert calibrate(Scan.from_arrays(kspace, noise_std=NOISE)).noise_std == NOISE
