"""Stills are found, and read as they should be shown."""

from __future__ import annotations

import struct
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageCms, UnidentifiedImageError

from curation.index import IndexStage, _describe_still, list_inputs
from curation.recipe import IndexOptions, Recipe
from model.stills import read_still
from tests.heic import write_heic

RED, GREEN = (255, 0, 0), (0, 255, 0)


@pytest.fixture
def two_colours() -> Image.Image:
    """Red on the left, green on the right: 40 x 20."""
    picture = Image.new("RGB", (40, 20), RED)
    picture.paste(GREEN, (20, 0, 40, 20))
    return picture


def colours(picture: np.ndarray) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The top left and the bottom right pixel."""
    return tuple(map(int, picture[0, 0])), tuple(map(int, picture[-1, -1]))


@pytest.mark.parametrize(
    ("orientation", "size", "top_left", "bottom_right"),
    [
        (1, (20, 40), RED, GREEN),
        (2, (20, 40), GREEN, RED),  # mirrored
        (3, (20, 40), GREEN, RED),  # upside down
        (6, (40, 20), RED, GREEN),  # the left goes up: to be turned clockwise
        (8, (40, 20), GREEN, RED),
    ],
)
def test_exif_orientation(tmp_path, two_colours, orientation, size, top_left, bottom_right):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.png"
    two_colours.save(path, exif=exif)
    picture = read_still(str(path))
    assert picture.shape == (*size, 3)
    assert picture.dtype == np.uint8
    assert picture.flags.c_contiguous
    assert colours(picture) == (top_left, bottom_right)


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def display_p3() -> bytes:
    """The profile of telephones: sRGB's with other primaries."""
    profile = bytearray(SRGB)
    primaries = {
        b"rXYZ": (0.51512, 0.2412, -0.00105),
        b"gXYZ": (0.29198, 0.69225, 0.04189),
        b"bXYZ": (0.1571, 0.06657, 0.78407),
    }
    for entry in range(132, 132 + 12 * int.from_bytes(profile[128:132]), 12):
        name, offset, _ = struct.unpack_from(">4s2I", profile, entry)
        if name in primaries:
            struct.pack_into(">3i", profile, offset + 8, *(round(value * 65536) for value in primaries[name]))
    return bytes(profile)


@pytest.mark.parametrize(
    ("name", "mode"), [("p.png", "RGB"), ("p.tiff", "RGB"), ("p.webp", "RGB"), ("p.png", "P"), ("p.png", "RGBA")]
)
def test_colour_profiles_are_followed(tmp_path, name, mode):
    red = (234, 51, 35)  # of Display P3: the red of sRGB
    picture = Image.new("RGB", (4, 4), red)
    picture.paste((128, 128, 128), (2, 2, 4, 4))
    picture = picture.quantize(4) if mode == "P" else picture.convert(mode)
    if mode == "RGBA":
        picture.putpixel((1, 0), (*red, 0))
    picture.save(tmp_path / name, icc_profile=display_p3(), lossless=True)
    found = read_still(tmp_path / name)
    assert np.abs(found[0, 0].astype(int) - RED).max() <= 2
    assert tuple(found[3, 3]) == (128, 128, 128)
    if mode == "RGBA":
        assert tuple(found[0, 1]) == (255, 255, 255)


def test_profiles_that_say_nothing_new_change_no_bit(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    p3 = display_p3()
    of_other_kinds = [p3[:16] + kind + p3[20:] for kind in (b"GRAY", b"CMYK", b"\x89GRA")]
    for number, profile in enumerate((SRGB, b"no profile", p3[:200], *of_other_kinds)):
        Image.fromarray(values).save(tmp_path / f"{number}.png", icc_profile=profile)
        assert np.array_equal(read_still(tmp_path / f"{number}.png"), values), number
    deep = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    Image.fromarray(deep).save(tmp_path / "deep.png", icc_profile=p3)
    assert np.array_equal(read_still(tmp_path / "deep.png")[..., 1], deep // 257)


def test_transparency_is_over_white(tmp_path):
    picture = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    picture.paste((0, 0, 0, 128), (2, 2, 4, 4))
    picture.save(tmp_path / "a.png")
    top_left, bottom_right = colours(read_still(str(tmp_path / "a.png")))
    assert top_left == (255, 255, 255)
    assert all(abs(value - 127) <= 1 for value in bottom_right)


def test_palette_with_and_without_a_transparent_entry(tmp_path, two_colours):
    palette = two_colours.quantize(4)
    palette.save(tmp_path / "p.png")
    assert colours(read_still(str(tmp_path / "p.png"))) == (RED, GREEN)
    palette.save(tmp_path / "t.png", transparency=palette.getpixel((0, 0)))
    assert colours(read_still(str(tmp_path / "t.png"))) == ((255, 255, 255), GREEN)


def test_grey_with_transparency(tmp_path):
    Image.new("LA", (4, 4), (0, 255)).save(tmp_path / "la.png")
    assert colours(read_still(str(tmp_path / "la.png"))) == ((0, 0, 0), (0, 0, 0))


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    values = np.array([[0, 32768], [65535, 257]], np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    assert read_still(str(tmp_path / "deep.png"))[..., 0].tolist() == [[0, 128], [255, 1]]


@pytest.mark.parametrize("top", [1.0, 255.0, 65535.0])
def test_float_greys_are_scaled(tmp_path, top):
    ramp = np.linspace(0, 1, 64 * 48, dtype=np.float32).reshape(48, 64)
    Image.fromarray(ramp * np.float32(top)).save(tmp_path / "grey.tiff")
    picture = read_still(str(tmp_path / "grey.tiff"))
    assert picture.shape == (48, 64, 3)
    assert abs(picture[..., 0].astype(float) - 255 * ramp).max() < 1.5


def test_cmyk_and_grey_become_rgb(tmp_path):
    Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(tmp_path / "c.jpg", quality=100)
    assert np.abs(read_still(str(tmp_path / "c.jpg"))[0, 0].astype(int) - RED).max() <= 3
    Image.new("L", (4, 4), 77).save(tmp_path / "g.png")
    assert colours(read_still(str(tmp_path / "g.png")))[0] == (77, 77, 77)


def test_ending_does_not_matter(tmp_path, two_colours):
    two_colours.save(tmp_path / "really_png.jpg", format="PNG")
    assert colours(read_still(str(tmp_path / "really_png.jpg"))) == (RED, GREEN)


def test_damaged_picture_is_an_error(tmp_path, two_colours):
    path = tmp_path / "cut.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 80, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises((OSError, ValueError)):
        read_still(str(path))


def test_a_program_is_no_picture(tmp_path, monkeypatch):
    """PostScript under any name: nothing runs it."""
    started = []
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *of, **how: started.append(of))
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(UnidentifiedImageError):
        read_still(path)
    row = index_still(path)
    assert (row["status"], row["reason"]) == ("rejected", "damaged_still")
    assert "save it again, as JPEG or PNG" in row["detail"]
    assert not started


def index_still(path: Path) -> dict:
    (unit,) = list_inputs([str(path)], IndexOptions())
    return IndexStage(Recipe(), path.parent).process(unit).rows["sources"][0]


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_still_that_breaks_off_is_rejected(tmp_path, share):
    path = tmp_path / "whole.jpg"
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(picture).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    row = index_still(path)
    assert (row["kind"], row["status"], row["reason"]) == ("still", "rejected", "damaged_still")


@pytest.mark.parametrize(
    ("name", "mode", "options"),
    [
        ("a.png", "RGBA", {}),
        ("b.png", "P", {}),
        ("c.png", "I;16", {}),
        ("d.png", "LA", {}),
        ("e.jpg", "L", {}),
        ("f.webp", "RGB", {}),
        ("g.jpg", "RGB", {"format": "PNG"}),
        ("h.mp4", "RGB", {"format": "JPEG"}),
        ("i.tif", "CMYK", {}),
    ],
)
def test_stills_of_every_kind(tmp_path, name, mode, options):
    path = tmp_path / name
    Image.new(mode, (40, 30)).save(path, **options)
    row = index_still(path)
    assert (row["kind"], row["status"], row["width_px"], row["height_px"]) == ("still", "ok", 40, 30)
    assert row["container"] == (options.get("format") or {"tif": "tiff", "jpg": "jpeg"}.get(name[2:], name[2:])).lower()


def test_still_is_as_wide_as_it_is_shown(tmp_path):
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.new("RGB", (40, 30)).save(path, exif=exif)
    row = index_still(path)
    assert (row["width_px"], row["height_px"], row["coded_width_px"], row["coded_height_px"]) == (30, 40, 40, 30)


def test_heic_of_a_telephone(tmp_path, two_colours):
    path = tmp_path / "photo.HEIC"
    write_heic(path, np.asarray(two_colours.resize((200, 100))), quarter_turns=3)
    row = index_still(path)
    assert (row["kind"], row["status"], row["container"]) == ("still", "ok", "heif")
    assert (row["width_px"], row["height_px"]) == (100, 200)
    picture = read_still(str(path)).astype(int)
    assert np.abs(picture[0, 0] - RED).max() <= 12
    assert np.abs(picture[-1, -1] - GREEN).max() <= 12
    whole = path.read_bytes()
    for size in (200, len(whole) - 40):
        path.write_bytes(whole[:size])
        row = index_still(path)
        assert (row["kind"], row["status"], row["reason"]) == ("still", "rejected", "damaged_still")


def test_what_a_search_leaves_out_is_told(tmp_path, two_colours, capsys):
    for name in ("a.png", "b.avif", "c.HEIC"):
        two_colours.save(tmp_path / name, format="PNG")
    for name in ("a.txt", "b.TXT", "README", "anim.gif", ".hidden", ".thumbs/x.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert [Path(unit["uri"]).name for unit in list_inputs([str(tmp_path)], IndexOptions())] == [
        "a.png",
        "b.avif",
        "c.HEIC",
    ]
    told = capsys.readouterr().err
    assert "4 files are left out for their endings: .txt (2), .gif (1), none (1); name a file itself" in told


def test_first_page_of_a_tiff_is_a_still(tmp_path, two_colours):
    path = tmp_path / "pages.tif"
    two_colours.save(path, save_all=True, append_images=[two_colours.rotate(180)])
    assert _describe_still(str(path))["status"] == "ok"
    assert colours(read_still(path)) == (RED, GREEN)


def test_a_still_that_is_too_large_is_not_told_as_damaged(tmp_path, two_colours, monkeypatch):
    two_colours.save(tmp_path / "panorama.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
    found = _describe_still(str(tmp_path / "panorama.png"))
    assert (found["status"], found["reason"]) == ("rejected", "too_large")
    assert "scale it down" in found["detail"]


def test_a_stream_of_mpeg_is_no_picture(tmp_path):
    """Pillow tells its name and size, and cannot read it."""
    path = tmp_path / "stream.mpg"
    with av.open(str(path), "w", format="mpeg2video") as output:
        stream = output.add_stream("mpeg2video", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(5):
            output.mux(stream.encode(av.VideoFrame(64, 48, "yuv420p")))
        output.mux(stream.encode(None))
    (unit,) = list_inputs([str(path)], IndexOptions())
    row = IndexStage(Recipe(), tmp_path).process(unit).rows["sources"][0]
    assert {name: row[name] for name in ("kind", "status", "codec", "width_px")} == {
        "kind": "video", "status": "ok", "codec": "mpeg2video", "width_px": 64,
    }  # fmt: skip


def test_of_an_animation_in_webp_the_first_picture_counts(tmp_path, two_colours):
    path = tmp_path / "moves.webp"
    two_colours.save(path, lossless=True, save_all=True, append_images=[two_colours.transpose(0)])
    (unit,) = list_inputs([str(path)], IndexOptions())
    row = IndexStage(Recipe(), tmp_path).process(unit).rows["sources"][0]
    assert (row["kind"], row["status"], row["width_px"], row["num_frames"]) == ("still", "ok", 40, 1)
    assert colours(read_still(path)) == (RED, GREEN)
