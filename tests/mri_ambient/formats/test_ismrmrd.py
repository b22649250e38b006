"""Files written by the ismrmrd library are read as they were meant."""

import pickle

import numpy as np
import pytest
from raw_files import coil_images, fft2c, header, lines_of, noise, readout, write_ismrmrd

from mri_ambient.calibration import calibrate
from mri_ambient.errors import InputError
from mri_ambient.inspection import inspect_scan
from mri_ambient.scan import load_scan, load_scans, write_scan

pytest.importorskip("ismrmrd", reason="the ismrmrd library, an independent writer, is not installed")

SLICES, COILS, HEIGHT, WIDTH = SHAPE = (2, 3, 24, 21)


@pytest.fixture
def images() -> np.ndarray:
    return coil_images(*SHAPE)


def load(folder, acquisitions, *, rows=HEIGHT, columns=WIDTH, part="", **settings):
    path = folder / "a.h5"
    if not path.exists():
        write_ismrmrd(path, header(rows, columns, **settings), acquisitions)
    return load_scan(f"{path}#{part}" if part else path)


class TestGeometry:
    @pytest.mark.parametrize("shape", [(2, 3, 24, 21), (1, 1, 25, 22), (3, 2, 31, 31)])
    def test_image_is_where_it_was(self, tmp_path, shape):
        images = coil_images(*shape)
        scan = load(tmp_path, lines_of(fft2c(images)), rows=shape[2], columns=shape[3])
        assert scan.shape == shape
        assert scan.acceleration == 1
        np.testing.assert_allclose(fft2c(scan.kspace.numpy(), inverse=True), images, atol=1e-6)

    @pytest.mark.parametrize(("rows", "factor"), [(48, 2), (50, 2), (72, 3)])
    def test_removed_oversampling_is_a_crop_of_the_image(self, tmp_path, rows, factor):
        kspace = noise(np.random.default_rng(0), SLICES, COILS, rows, WIDTH)
        scan = load(tmp_path, lines_of(kspace), rows=rows, oversampling=factor)
        kept = rows // factor
        top = rows // 2 - kept // 2
        expected = fft2c(kspace, inverse=True)[:, :, top : top + kept]
        assert scan.shape == (SLICES, COILS, kept, WIDTH)
        np.testing.assert_allclose(fft2c(scan.kspace.numpy(), inverse=True), expected, atol=1e-5)
        assert inspect_scan(tmp_path / "a.h5")["details"]["oversampling"] == factor

    def test_noise_stays_white_when_oversampling_is_removed(self, tmp_path):
        kspace = noise(np.random.default_rng(1), 4, COILS, 96, WIDTH)
        scan = load(tmp_path, lines_of(kspace), rows=96, oversampling=2)
        assert scan.kspace.real.std() == pytest.approx(1, rel=0.02)

    def test_limits_of_the_encoding_place_the_lines(self, tmp_path, images):
        kspace = fft2c(images)
        stored = [
            readout(kspace[i, :, :, c], kspace_encode_step_1=c - 6, slice=i) for c in range(6, 21) for i in (0, 1)
        ]
        scan = load(tmp_path, stored, center=4, maximum=14)
        assert scan.padding == (6, 0)
        assert scan.mask.tolist() == [False] * 6 + [True] * 15
        np.testing.assert_allclose(scan.kspace[..., 6:], kspace[..., 6:], atol=1e-6)
        assert not scan.kspace[..., :6].any()

    def test_reversed_readouts_are_turned_round(self, tmp_path, images):
        kspace = fft2c(images)
        stored = lines_of(kspace, range(0, WIDTH, 2))
        for column in range(1, WIDTH, 2):
            for index in range(SLICES):
                samples = kspace[index, :, ::-1, column]
                stored.append(readout(samples, "reversed", kspace_encode_step_1=column, slice=index))
        np.testing.assert_allclose(load(tmp_path, stored).kspace, kspace, atol=1e-6)

    def test_discarded_samples_are_not_acquired(self, tmp_path, images):
        kspace = fft2c(images)
        spoilt = kspace.copy()
        spoilt[..., :3, :] = spoilt[..., -2:, :] = 1e3
        scan = load(tmp_path, lines_of(spoilt, discard_pre=3, discard_post=2))
        rows = np.zeros(HEIGHT, bool)
        rows[3:-2] = True
        np.testing.assert_array_equal(scan.mask, np.broadcast_to(rows[:, None], (HEIGHT, WIDTH)))
        np.testing.assert_allclose(scan.kspace, kspace * rows[:, None], atol=1e-6)

    def test_discarded_samples_of_a_reversed_readout(self, tmp_path, images):
        kspace = fft2c(images[:1])
        stored = [
            readout(kspace[0, :, ::-1, c], "reversed", kspace_encode_step_1=c, discard_pre=4) for c in range(WIDTH)
        ]
        assert load(tmp_path, stored).mask[:, 0].tolist() == [True] * 20 + [False] * 4

    def test_asymmetric_echo(self, tmp_path, images):
        kspace = fft2c(images)
        stored = [
            readout(kspace[i, :, 7:, c], center=HEIGHT // 2 - 7, kspace_encode_step_1=c, slice=i)
            for c in range(WIDTH)
            for i in range(SLICES)
        ]
        scan = load(tmp_path, stored)
        assert scan.mask[:, 3].tolist() == [False] * 7 + [True] * 17
        assert scan.acceleration == pytest.approx(HEIGHT / 17)
        np.testing.assert_allclose(scan.kspace[..., 7:, :], kspace[..., 7:, :], atol=1e-6)

    def test_asymmetric_echo_with_oversampling(self, tmp_path):
        images = coil_images(SLICES, COILS, 48, WIDTH, margin=12)
        kspace = fft2c(images)
        stored = [
            readout(kspace[i, :, 14:, c], center=10, kspace_encode_step_1=c, slice=i)
            for c in range(WIDTH)
            for i in range(SLICES)
        ]
        scan = load(tmp_path, stored, rows=48, oversampling=2)
        assert scan.mask[:, 0].tolist() == [False] * 7 + [True] * 17
        assert not scan.source.kspace(0)[:, :7].any()
        expected = fft2c(images[:, :, 12:36])
        inner = scan.kspace[:, :, 10:].numpy() - expected[:, :, 10:]
        assert np.abs(inner).max() < 0.02 * np.abs(expected).max()  # the interpolation misses what was not acquired

    def test_centre_that_was_not_filled_in(self, tmp_path, images):
        kspace = fft2c(images)
        np.testing.assert_allclose(load(tmp_path, lines_of(kspace, center=0)).kspace, kspace, atol=1e-6)

    def test_slices_are_in_the_order_of_their_positions(self, tmp_path):
        images = coil_images(3, COILS, HEIGHT, WIDTH)
        kspace = fft2c(images)
        stored = []
        for counter, place in enumerate([10.0, -10.0, 0.0]):
            where = {"position": (3.0, 0.0, place), "slice_dir": (0.0, 0.0, 1.0)}
            stored += [
                readout(kspace[counter, :, :, c], kspace_encode_step_1=c, slice=counter, **where) for c in range(WIDTH)
            ]
        np.testing.assert_allclose(load(tmp_path, stored).kspace, kspace[[1, 2, 0]], atol=1e-6)

    def test_voxels_are_those_of_the_header(self, tmp_path, images):
        attributes = load(tmp_path, lines_of(fft2c(images))).attributes
        assert attributes["voxel_mm_slice"] == 5
        assert attributes["voxel_mm_y"] == 1
        assert attributes["voxel_mm_x"] == pytest.approx(200 / WIDTH)


class TestSampling:
    def test_undersampling(self, tmp_path, images):
        kspace, kept = fft2c(images), [0, 2, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 16, 18, 20]
        scan = load(tmp_path, lines_of(kspace, kept), center=10, maximum=20)
        assert scan.mask.nonzero().flatten().tolist() == kept
        assert scan.padding == (0, 0)
        np.testing.assert_allclose(scan.kspace[..., kept], kspace[..., kept], atol=1e-6)

    def test_slices_with_different_lines(self, tmp_path, images):
        kspace = fft2c(images)
        stored = lines_of(kspace[:1], range(0, WIDTH, 2))
        stored += [readout(kspace[1, :, :, c], kspace_encode_step_1=c, slice=1) for c in range(1, WIDTH, 2)]
        scan = load(tmp_path, stored)
        assert scan.mask.shape == (2, 1, WIDTH)
        assert scan.slice_mask(1).nonzero().flatten().tolist() == list(range(1, WIDTH, 2))

    def test_samples_that_are_zero_were_acquired_all_the_same(self, tmp_path):
        kspace = fft2c(coil_images(1, COILS, HEIGHT, WIDTH))
        kspace[..., 4] = 0
        assert load(tmp_path, lines_of(kspace)).mask.all()


class TestCalibration:
    def stored(self, kspace, separate=False):
        """Every other line, and the missing ones of the centre flagged as calibration (`separate`: all of it)."""
        stored = lines_of(kspace, range(0, WIDTH, 2))
        centre = range(6, 15) if separate else range(7, 15, 2)
        for column in centre:
            for index in range(SLICES):
                values = kspace[index, :, :, column] * (5 if separate else 1)
                stored.append(readout(values, "calibration", kspace_encode_step_1=column, slice=index))
        for acquisition in stored[: 2 * SLICES]:
            acquisition.set_flag(21)
        return stored

    def test_embedded_lines_belong_to_the_scan(self, tmp_path, images):
        kspace = fft2c(images)
        scan = load(tmp_path, self.stored(kspace), mode="embedded", center=10, maximum=20)
        assert scan.mask.nonzero().flatten().tolist() == [0, 2, 4, *range(6, 15), 16, 18, 20]
        np.testing.assert_allclose(scan.kspace, kspace * scan.mask.numpy(), atol=1e-6)
        assert inspect_scan(tmp_path / "a.h5")["details"]["calibration"] == 4 * SLICES + 2 * SLICES

    def test_lines_in_gaps_belong_to_the_scan_where_the_header_is_silent(self, tmp_path, images):
        assert load(tmp_path, self.stored(fft2c(images))).mask.sum() == 15

    @pytest.mark.parametrize("mode", ["separate", "external", None])
    def test_separate_lines_do_not(self, tmp_path, images, mode):
        kspace = fft2c(images)
        scan = load(tmp_path, self.stored(kspace, separate=True), mode=mode, center=10, maximum=20)
        assert scan.mask.nonzero().flatten().tolist() == list(range(0, WIDTH, 2))
        np.testing.assert_allclose(scan.kspace[..., ::2], kspace[..., ::2], atol=1e-6)
        found = inspect_scan(tmp_path / "a.h5")
        assert any("18 calibration readouts were acquired separately" in problem for problem in found["problems"])

    def test_separate_lines_do_not_even_fill_gaps(self, tmp_path, images):
        assert load(tmp_path, self.stored(fft2c(images)), mode="separate").mask.sum() == 11

    def test_other_readouts_are_no_image(self, tmp_path, images):
        kspace = fft2c(images)
        stored = lines_of(kspace)
        for flag in ("navigation", "phase_correction"):
            stored.insert(0, readout(np.full((COILS, 9), 1e3), flag, kspace_encode_step_1=3))
        np.testing.assert_allclose(load(tmp_path, stored).kspace, kspace, atol=1e-6)


class TestAverages:
    def test_are_averaged(self, tmp_path, images):
        rng = np.random.default_rng(3)
        repeated = [fft2c(images) + noise(rng, *SHAPE) for _ in range(3)]
        stored = [line for number, kspace in enumerate(repeated) for line in lines_of(kspace, average=number)]
        scan = load(tmp_path, stored)
        np.testing.assert_allclose(scan.kspace, np.mean(repeated, axis=0), atol=1e-5)
        assert inspect_scan(tmp_path / "a.h5")["details"]["averages"] == 3

    def test_noise_goes_down_and_the_weakest_line_counts(self, tmp_path):
        rng = np.random.default_rng(4)
        stored = [readout(noise(rng, COILS, 4096), "noise")]
        stored += [line for n in range(4) for line in lines_of(noise(rng, *SHAPE), average=n)]
        scan = load(tmp_path, stored)
        assert scan.noise_std == pytest.approx(0.5, rel=0.03)
        assert scan.kspace.real.std() == pytest.approx(0.5, rel=0.05)
        uneven = stored + lines_of(noise(rng, *SHAPE), [9, 10], average=4)
        write_ismrmrd(tmp_path / "b.h5", header(HEIGHT, WIDTH), uneven)
        found = inspect_scan(tmp_path / "b.h5")
        assert found["noise_std"] == pytest.approx(0.5, rel=0.03)
        assert any("averaged 4 to 5 times" in problem for problem in found["problems"])


class TestNoiseScan:
    MIXING = np.array([[2, 0, 0], [0.7 + 0.4j, 1, 0], [-0.3j, 0.5, 0.5]])

    def stored(self, dwell=0.0, own=0.0, extra=1.0):
        """A noise scan and a scan of nothing but noise, correlated between coils, `extra` times as strong."""
        rng = np.random.default_rng(5)
        stored = [readout(self.MIXING @ noise(rng, COILS, 5120), "noise", sample_time_us=dwell) for _ in range(4)]
        kspace = np.einsum("dc,scyx->sdyx", self.MIXING, noise(rng, 6, *SHAPE[1:])) * extra
        return stored + lines_of(kspace, sample_time_us=own)

    @pytest.mark.parametrize(
        ("settings", "bandwidth", "extra"),
        [
            ({}, None, 1.0),
            ({"dwell": 8.0, "own": 2.0}, None, 2.0),
            ({"dwell": 2.0, "own": 8.0}, None, 0.5),
            ({}, 0.64, 1.25),
        ],
    )
    def test_whitens_the_coils(self, tmp_path, settings, bandwidth, extra):
        scan = load(tmp_path, self.stored(**settings, extra=extra), bandwidth=bandwidth)
        samples = scan.kspace.movedim(1, 0).reshape(COILS, -1).numpy()
        covariance = samples @ samples.conj().T / samples.shape[1]
        np.testing.assert_allclose(covariance, 2 * scan.noise_std**2 * np.eye(COILS), atol=0.1 * scan.noise_std**2)
        expected = extra * np.sqrt(np.trace(self.MIXING @ self.MIXING.conj().T).real / COILS)
        assert scan.noise_std == pytest.approx(expected, rel=0.03)

    def test_its_readouts_are_no_image(self, tmp_path, images):
        stored = [readout(noise(np.random.default_rng(6), COILS, 512), "noise"), *lines_of(fft2c(images))]
        scan = load(tmp_path, stored)
        assert scan.shape == SHAPE
        assert scan.mask.all()

    def test_it_may_be_in_a_group_of_its_own(self, tmp_path):
        both = self.stored()
        write_ismrmrd(tmp_path / "a.h5", header(HEIGHT, WIDTH), both[:4], group="dataset_1")
        scan = load_scan(write_ismrmrd(tmp_path / "a.h5", header(HEIGHT, WIDTH), both[4:], group="dataset_2"))
        assert scan.noise_std == pytest.approx(
            np.sqrt(np.trace(self.MIXING @ self.MIXING.conj().T).real / COILS), rel=0.03
        )

    def test_other_coils_are_reported(self, tmp_path, images):
        stored = [readout(noise(np.random.default_rng(6), 2, 512), "noise"), *lines_of(fft2c(images))]
        assert load(tmp_path, stored).noise_std is None
        assert any("noise scan has other coils" in text for text in inspect_scan(tmp_path / "a.h5")["problems"])

    def test_without_one_the_level_is_estimated(self, tmp_path, images):
        scan = load(tmp_path, lines_of(fft2c(images) + 0.01 * noise(np.random.default_rng(7), *SHAPE)))
        assert scan.noise_std is None
        assert calibrate(scan).noise_std < 0.05

    def test_copied_coil_is_refused(self, tmp_path, images):
        same = np.repeat(noise(np.random.default_rng(8), 1, 512), COILS, axis=0)
        with pytest.raises(InputError, match=r"noise scan of .* cannot be used"):
            load(tmp_path, [readout(same, "noise"), *lines_of(fft2c(images))])


class TestSeveralScans:
    def stored(self, images):
        kspace = fft2c(images)
        stored = [line for e in (0, 1) for line in lines_of(kspace * (e + 1), contrast=e)]
        return stored + lines_of(kspace * 3, range(0, WIDTH, 2), contrast=1, repetition=2)

    def test_one_scan_each(self, tmp_path, images):
        path = write_ismrmrd(tmp_path / "a.h5", header(HEIGHT, WIDTH), self.stored(images))
        with pytest.raises(InputError) as caught:
            load_scan(path)
        assert str(caught.value) == (
            f"{path} holds 3 scans, from contrast=0,repetition=0 to contrast=1,repetition=2: name one, as in "
            f"{path}#contrast=0,repetition=0."
        )
        scans = load_scans(path)
        assert [scan.name for scan in scans] == [
            "a_contrast0_repetition0", "a_contrast1_repetition0", "a_contrast1_repetition2",
        ]  # fmt: skip
        for factor, scan in zip((1, 2, 3), scans, strict=True):
            np.testing.assert_allclose(scan.read(0) * 1, factor * fft2c(images)[0] * scan.mask.numpy(), atol=1e-5)
        assert inspect_scan(f"{path}#contrast=1,repetition=2")["part"] == "contrast=1,repetition=2"

    def test_unknown_name(self, tmp_path, images):
        with pytest.raises(InputError, match=r"holds no scan contrast=7: it holds from contrast=0"):
            load(tmp_path, self.stored(images), part="contrast=7")
        (tmp_path / "a.h5").unlink()
        with pytest.raises(InputError, match=r"holds no scan contrast=1: it holds only one"):
            load(tmp_path, lines_of(fft2c(images)), part="contrast=1")

    def test_groups(self, tmp_path, images):
        path, kspace = tmp_path / "a.h5", fft2c(images)
        write_ismrmrd(path, header(HEIGHT, WIDTH), lines_of(kspace), group="first")
        twice = [line for e in (0, 1) for line in lines_of(kspace * (e + 2), contrast=e)]
        write_ismrmrd(path, header(HEIGHT, WIDTH), twice, group="second")
        scans = load_scans(path)
        assert [scan.name for scan in scans] == [
            "a_datasetfirst", "a_datasetsecond_contrast0", "a_datasetsecond_contrast1",
        ]  # fmt: skip
        assert [float(scan.kspace.abs().max() / np.abs(kspace).max()) for scan in scans] == pytest.approx([1, 2, 3])


class TestLaziness:
    def test_one_slice_is_read_at_a_time(self, tmp_path, images, monkeypatch):
        from mri_ambient.formats import ismrmrd

        scan = load(tmp_path, lines_of(fft2c(images)))
        asked = []
        plain = ismrmrd._fetch

        def record(path, address, *rest, **named):
            asked.append(len(address))
            return plain(path, address, *rest, **named)

        object.__setattr__(scan.source, "fetch", record)
        scan.read(1)
        assert asked == [WIDTH]

    def test_pickles_without_samples(self, tmp_path):
        images = coil_images(1, 8, 256, WIDTH)
        scan = load(tmp_path, lines_of(fft2c(images)), rows=256)
        content = pickle.dumps(scan)
        assert len(content) < 6000
        np.testing.assert_array_equal(pickle.loads(content).read(0), scan.read(0))

    def test_readouts_appended_one_by_one(self, tmp_path, images):
        import ismrmrd

        kspace = fft2c(images)
        with ismrmrd.Dataset(str(tmp_path / "a.h5"), "measurement") as dataset:
            dataset.write_xml_header(header(HEIGHT, WIDTH).encode())
            for line in lines_of(kspace):
                dataset.append_acquisition(line)
        np.testing.assert_allclose(load_scan(tmp_path / "a.h5").kspace, kspace, atol=1e-6)

    def test_written_as_fastmri_it_is_the_same_scan(self, tmp_path, images):
        scan = load(tmp_path, lines_of(fft2c(images), range(2, WIDTH)))
        write_scan(scan, tmp_path / "b.h5")
        again = load_scan(tmp_path / "b.h5")
        np.testing.assert_array_equal(again.kspace, scan.kspace)
        np.testing.assert_array_equal(again.mask, scan.mask)
        assert again.recon_size == scan.recon_size
