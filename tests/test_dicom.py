"""DICOM files, plain and compressed, become greys as the standard says."""

import base64
import io

import numpy as np
import pydicom
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import (
    HTJ2K,
    MPEG4HP41,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
    generate_uid,
)
from test_sources import run, save

from tedm.data import decoders
from tedm.data.decoders import dicom
from tedm.errors import TedmError

GREY = np.random.default_rng(0).integers(0, 4096, (8, 10)).astype(np.uint16)
# What no encoder is installed for, as OpenJPH and an encoder of lossless JPEG (SOF3) wrote it, in base 85:
# pixel (y, x) of 16 × 16 is (11 x² + 97 y) mod 4096.
HTJ2K_STREAM = (
    b"|4;u>04YEK0000G0000G00000000000000G0000G0000000000009pH0sl|{2mk^A000XAQUDA90ssL31q1{@0smY86Cj9?k"
    b"dTm&kdTm&kdTmwh=~7W02crOPjF>!N>E53R%LP^FfKASE;BCwkN^q*00000!T<sPlfVEbdHDqgbN~Rr0206e69DD{hjak!{s"
    b"M<|0KfnhPyhtrU-=3Tc<=#&v;cI|{Q!eh0Kfni!~g+Q*Y$c`afL=2UDxY%#T6Q9^bF$Th_SZ-vSnpuz%haBwgA8YF8TlgXn<"
    b"8~RaI40Rj9y+Pt{sgRaI3LD)8Y`wN_PCRaJ!weE3wYRaI40RiOeOJ^(Yd`pf5Q^_R}q>n<TIYB93`z(61n2m}KCh(LSxApz{"
    b"V0RPz"
)
SOF3_STREAM = (
    b"|JeV;02u%Q0RaI40RR9100000000062M7rS4FAIb3k(1d01yEH5di<%00;p900sa6`Tqd@Xj{{4cby-pb>7k3`}d-KDe3)%i"
    b"xw<cv0}xG7A#n?V_{;&ixw<cv0}xG7A#oUSg~Toixw<cv0}xG7B&_vSg~Toixw<cv0}xIg^Ly}Sg~Toixw<cv14Ik#fug!Sg"
    b"~Toixw<c*jTY*#fug!Sg~ToixxH(ELgE(#fug!Sg~TojfIOAELgE(#fug!Sg~VaV#SLVELgE(#fug!SlC#xV#SLVELgE(#fu"
    b"g;7A#n?V#SLVELgE(#f^oF7A#n?V#SLVELgE)VPeIL7A#n?V#SLVELhlBv0}xG7A#n?V#SLVAph9"
)


def dataset(pixels=GREY, *, bits=12, signed=False, photometric="MONOCHROME2", **tags):
    made = pydicom.Dataset()
    made.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"  # secondary capture
    made.SOPInstanceUID = generate_uid()
    made.PatientID = "4711"
    made.Rows, made.Columns = pixels.shape[:2]
    made.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    if pixels.ndim == 3:
        made.PlanarConfiguration = 0
    made.BitsAllocated = 8 * pixels.dtype.itemsize
    made.BitsStored, made.HighBit = bits, bits - 1
    made.PixelRepresentation = int(signed)
    made.PhotometricInterpretation = photometric
    made.PixelData = pixels.tobytes()
    for key, value in tags.items():
        setattr(made, key, value)
    made.file_meta = pydicom.dataset.FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return made


def write(path, made):
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(path, enforce_file_format=True)
    return path


def test_plain_pixels_and_their_spacing_are_read(tmp_path):
    path = write(tmp_path / "a.dcm", dataset(PixelSpacing=[0.5, 0.25]))
    pixels, spacing = decoders.pixels(path, 1)
    assert pixels.dtype == np.float32
    assert_array_equal(pixels[0], GREY)
    assert spacing == (0.5, 0.25)
    assert decoders.header(path) == ((10, 8), True)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless], ids=lambda s: s.name)
def test_lossless_compression_changes_nothing(tmp_path, syntax):
    grey = np.tile(GREY, (8, 8))
    made = dataset(grey)
    made.compress(syntax)
    pixels, _ = decoders.pixels(write(tmp_path / "a.dcm", made), 1)
    assert_array_equal(pixels[0], grey)


@pytest.mark.parametrize(
    ("stream", "syntax"),
    [
        (HTJ2K_STREAM, HTJ2KLossless),
        (HTJ2K_STREAM, HTJ2KLosslessRPCL),
        (HTJ2K_STREAM, HTJ2K),
        (SOF3_STREAM, JPEGLossless),
        (SOF3_STREAM, JPEGLosslessSV1),
    ],
    ids=lambda given: getattr(given, "name", ""),
)
def test_streams_of_other_encoders_are_read(tmp_path, stream, syntax):
    y, x = np.mgrid[:16, :16]
    grey = ((11 * x**2 + 97 * y) % 4096).astype(np.uint16)
    pixels, _ = decoders.pixels(encapsulated(tmp_path / "a.dcm", dataset(grey), stream, syntax), 1)
    assert_array_equal(pixels[0], grey)


def encapsulated(path, made, stream, syntax):
    made.PixelData = encapsulate([base64.b85decode(stream)])
    made["PixelData"].is_undefined_length = True
    made.file_meta.TransferSyntaxUID = syntax
    return write(path, made)


def test_near_lossless_compression_stays_within_its_error(tmp_path):
    grey = np.tile(GREY, (8, 8))
    made = dataset(grey)
    made.compress(JPEGLSNearLossless, jls_error=3)
    pixels, _ = decoders.pixels(write(tmp_path / "a.dcm", made), 1)
    assert_allclose(pixels[0], grey, atol=3)


def test_a_film_is_refused_by_the_name_of_its_syntax(tmp_path):
    path = encapsulated(tmp_path / "a.dcm", dataset(), HTJ2K_STREAM, MPEG4HP41)
    with pytest.raises(TedmError, match=r"a\.dcm: stored as MPEG-4 AVC/H\.264 .*, which is not read"):
        decoders.pixels(path, 1)


def test_baseline_jpeg_is_read_as_8_bit(tmp_path):
    smooth = np.add.outer(np.arange(16) * 8, np.arange(16) * 6).astype(np.uint8)
    made = dataset(smooth, bits=8)
    file = io.BytesIO()
    Image.fromarray(smooth).save(file, "JPEG", quality=100)
    made.PixelData = encapsulate([file.getvalue()])
    made["PixelData"].is_undefined_length = True
    made.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    pixels, _ = decoders.pixels(write(tmp_path / "a.dcm", made), 1)
    assert pixels.dtype == np.uint8
    assert_allclose(pixels[0], smooth, atol=3)


def test_monochrome1_is_inverted_within_the_stored_bits(tmp_path):
    path = write(tmp_path / "a.dcm", dataset(photometric="MONOCHROME1"))
    assert_array_equal(decoders.pixels(path, 1)[0][0], 4095.0 - GREY)
    shallow = (GREY >> 4).astype(np.uint8)
    path = write(tmp_path / "b.dcm", dataset(shallow, bits=8, photometric="MONOCHROME1"))
    pixels, _ = decoders.pixels(path, 1)
    assert pixels.dtype == np.uint8
    assert_array_equal(pixels[0], 255 - shallow)


def test_rescale_and_window_follow_the_standard(tmp_path):
    stored = GREY.astype(np.int16) - 2048
    made = dataset(
        stored,
        signed=True,
        RescaleSlope=2,
        RescaleIntercept=-100,
        WindowCenter=[40, 9],
        WindowWidth=[400, 9],
    )
    path = write(tmp_path / "a.dcm", made)
    units = 2.0 * stored - 100
    assert_array_equal(dicom.pixels(path, 1)[0][0], units)
    # PS3.3 C.11.2.1.2.1, in its own words: y from 0 to 1
    expected = np.where(
        units <= 40 - 0.5 - 399 / 2, 0, np.where(units > 40 - 0.5 + 399 / 2, 1, (units - 39.5) / 399 + 0.5)
    )
    for window in ("file", [40, 400]):
        assert_allclose(dicom.pixels(path, 1, window)[0][0], expected, atol=1e-6)
    sigmoid = dataset(WindowCenter=2000, WindowWidth=800, VOILUTFunction="SIGMOID")
    path = write(tmp_path / "b.dcm", sigmoid)
    expected = 1 / (1 + np.exp(-4 * (GREY.astype(float) - 2000) / 800))
    assert_allclose(dicom.pixels(path, 1, "file")[0][0], expected, atol=1e-6)
    inverted = write(tmp_path / "c.dcm", dataset(photometric="MONOCHROME1"))
    plain = write(tmp_path / "d.dcm", dataset())
    window = [2048, 1000]
    assert_allclose(dicom.pixels(inverted, 1, window)[0], 1 - dicom.pixels(plain, 1, window)[0], atol=1e-6)


def test_colour_becomes_the_grey_that_a_png_becomes(tmp_path):
    colour = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    path = write(tmp_path / "a.dcm", dataset(colour, bits=8, photometric="RGB"))
    assert_array_equal(decoders.pixels(path, 1)[0][0], np.asarray(Image.fromarray(colour).convert("L")))
    assert_array_equal(decoders.pixels(path, 3)[0], colour.transpose(2, 0, 1))


def test_a_folder_of_dicom_is_split_by_patient_whose_number_goes_nowhere(tmp_path):
    for k in range(4):
        made = dataset(np.roll(GREY, k, 0), PatientID=f"secret {k // 2}", ImagerPixelSpacing=[0.2, 0.1])
        write(tmp_path / f"scans/series {k}/ä.dcm", made)
        save(tmp_path / f"masks/series {k}/ä.png", (GREY > 2000).astype(np.uint8))
    source = {"type": "dicom", "images": "scans", "masks": "masks"}
    with run(tmp_path, source) as data:
        assert data.ids[0] == "series 0/ä" or len(data.ids) == 4
        assert len(set(data.subjects)) == 2
        assert data.intensity_range == (0, 4095)
        assert_allclose(data.spacing_mm, (0.2, 0.1 * 10 / 8))
    assert b"secret" not in (tmp_path / "out/mine.h5").read_bytes()
    with run(tmp_path, source | {"window": [2000, 1000], "subject": "image"}) as data:
        assert data.intensity_range == (0, 1)
        assert data.subjects == data.ids


def test_a_folder_can_mix_dicom_with_other_deep_images(tmp_path):
    write(tmp_path / "images/a.dcm", dataset())
    save(tmp_path / "images/b.tif", GREY)
    with run(tmp_path, {"type": "folder", "images": "images"}, size=16) as data:
        assert_allclose(data.images([0]), data.images([1]))


def frames(made):
    made.NumberOfFrames = 2
    made.PixelData = made.PixelData * 2


def without_pixels(made):
    del made.PixelData


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (frames, "has 2 frames"),
        (without_pixels, "cannot be read"),
        (lambda made: setattr(made, "Rows", 0), "has no pixels"),
        (lambda made: (setattr(made, "Rows", 60000), setattr(made, "Columns", 60000)), "too large"),
        (lambda made: delattr(made, "Rows"), "not an image"),
        (lambda made: setattr(made, "PixelData", made.PixelData[:50]), "cannot be read"),
    ],
)
def test_what_is_no_single_image_is_named(tmp_path, harm, message):
    made = dataset()
    harm(made)
    write(tmp_path / "images/a.dcm", made)
    with pytest.raises(TedmError, match=rf"a\.dcm: .*{message}"):
        run(tmp_path, {"type": "folder", "images": "images"})


def test_what_is_no_dicom_file_is_named(tmp_path):
    (tmp_path / "a.dcm").write_bytes(b"this is not DICOM" * 20)
    with pytest.raises(TedmError, match=r"a\.dcm: not a DICOM file"):
        decoders.pixels(tmp_path / "a.dcm", 1)


def test_a_missing_decoder_says_what_to_install(tmp_path, monkeypatch):
    made = dataset()
    made.compress(RLELossless)
    path = write(tmp_path / "a.dcm", made)
    whole = bytearray(path.read_bytes())
    # A syntax that nothing decodes.
    old, new = RLELossless.encode(), b"1.2.840.10008.1.2.9"
    assert len(old) == len(new)
    path.write_bytes(bytes(whole).replace(old, new))
    with pytest.raises(TedmError, match=r"a\.dcm: stored as 1\.2\.840"):
        decoders.pixels(path, 1)
    path.write_bytes(bytes(whole))
    monkeypatch.setattr(dicom, "_decodes", lambda syntax: False)
    made.PixelData = encapsulate([b"nothing to decode"])
    with pytest.raises(TedmError, match=r"stored as RLE Lossless.*tedm\[dicom\]"):
        decoders.pixels(write(path, made), 1)
