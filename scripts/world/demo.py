"""The demo collection: small, of all kinds, with copies, outliers, defects and broken files in it.

Put here: which objects the demo has and what is expected of each.
Keep out: how any of them is made.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

from world import hostile, stills
from world.clutter import draw_page
from world.collection import Collection
from world.documents import Page
from world.encoding import AAC, H264, MP3, OPUS, VP9, AudioCodec, VideoCodec
from world.films import FilmRecipe
from world.pen import Image
from world.truth import MediaKind, MediaObject, SceneTruth

DEFAULT_SEED = 610_000
PCM = AudioCodec("pcm_s16le", 16_000, 0)
FLAC = AudioCodec("flac", 16_000, 0)

FILMS = {
    "films/2026/spring/garden.mp4": FilmRecipe(6, fps=24, note="H.264 and AAC, 24 frames a second"),
    "films/2026/spring/market.mov": FilmRecipe(
        7, fps=30, dark_scene=4, note="QuickTime; scene 4 is black, still and only heard"
    ),
    "films/2026/summer/harbour.mkv": FilmRecipe(
        6, audio=OPUS, video_delay_s=0.5, note="Matroska and Opus; the video starts 0.5 s after the sound"
    ),
    "films/2026/summer/bridge.webm": FilmRecipe(
        6, video=VideoCodec("libvpx-vp9", VP9), audio=OPUS, note="VP9 and Opus"
    ),
    "films/archive/old tape.avi": FilmRecipe(
        5, video=VideoCodec("mpeg4", {}, 450_000), audio=MP3, note="MPEG-4 part 2 and MP3"
    ),
    "films/archive/broadcast.ts": FilmRecipe(
        6,
        container_options={"output_ts_offset": "10"},
        note="MPEG transport stream; its clock starts near 10 s",
    ),
    "films/phone/walk.mp4": FilmRecipe(7, fps=30, has_variable_rate=True, note="variable frame rate"),
    "films/phone/sideways.mp4": FilmRecipe(
        6, fps=30, is_rotated=True, height_px=384, note="stored on its side; the display matrix turns it 90° clockwise"
    ),
    "films/phone/mute.mp4": FilmRecipe(5, fps=24, video=H264, audio=None, note="no sound track"),
}

PLAIN_STILLS = {
    **{f"images/photos/p{n:02d}.jpg": "JPEG" for n in range(1, 9)},
    **{f"images/drawings/d{n:02d}.png": "PNG" for n in range(1, 6)},
    **{f"images/web/w{n:02d}.webp": "WEBP" for n in range(1, 4)},
    "images/web/icon.gif": "GIF",
    "images/web/banner.gif": "GIF",
    "images/scans/s01.tif": "TIFF",
    "images/scans/s02.tiff": "TIFF",
}
ODD_KEYS = {
    "images/odd names/a picture with  spaces.jpg": "spaces in the key",
    "images/odd names/party 🎉.jpg": "an emoji in the key",
    "images/odd names/nfc/Gr\u00fcn.jpg": "ü as one code point (NFC)",
    "images/odd names/nfd/Gru\u0308n.jpg": "ü as u and a combining mark (NFD)",
}

RECORDINGS = {
    "recordings/memo.wav": (PCM, 10.0),
    "recordings/interview.flac": (FLAC, 16.0),
    "recordings/radio/news.mp3": (MP3, 22.0),
    "recordings/radio/weather.ogg": (OPUS, 18.0),
    "recordings/phone/message.m4a": (AAC, 14.0),
    "recordings/radio/long talk.mp3": (MP3, 40.0),
}
_Change: TypeAlias = Callable[[Image, SceneTruth], tuple[Image, SceneTruth]]
NEAR_COPIES: tuple[tuple[str, str, _Change], ...] = (
    ("copies/near/recoded.jpg", "images/photos/p02.jpg", lambda image, scene: (image, scene)),
    ("copies/near/half size.jpg", "images/photos/p03.jpg", lambda i, s: stills.resize_still(i, s, 0.5)),
    ("copies/near/cropped.jpg", "images/drawings/d01.png", lambda i, s: stills.crop_still(i, s, 0.02)),
    ("copies/near/brighter.jpg", "images/photos/p04.jpg", lambda i, s: (stills.brighten_still(i, 18), s)),
)


def fill_demo(collection: Collection) -> None:
    """Add all objects of the demo."""
    for key, recipe in FILMS.items():
        collection.add_film(key, recipe)
    _add_stills(collection)
    for key, (codec, duration_s) in RECORDINGS.items():
        collection.add_recording(key, codec, duration_s)
    _add_documents(collection)
    _add_copies(collection)
    _add_outliers(collection)
    _add_defects(collection)
    _add_broken(collection)


def _add_stills(collection: Collection) -> None:
    for key, kind in PLAIN_STILLS.items():
        collection.add_frame(key, kind)
    for key, note in ODD_KEYS.items():
        collection.add_frame(key, "JPEG", note=note)
    collection.add_frame("images/photos/large.jpg", "JPEG", size_px=(1280, 720), note="1280 x 720")
    collection.add_frame("images/photos/portrait.jpg", "JPEG", orientation=6, note="EXIF orientation 6")
    collection.add_frame("images/photos/overhead.jpg", "JPEG", orientation=3, note="EXIF orientation 3")
    collection.add_frame("images/photos/photo.jpg", "PNG", note="a PNG file with a wrong extension")
    _add_upside_down(collection, "images/photos/upside down.jpg")


def _add_upside_down(collection: Collection, key: str) -> None:
    """Add a lone shape without text or people, so that its caption stays true."""
    rng = collection.rng_for(key)
    spec = collection.scenes.draw(rng)
    while spec.scene.kind != "one":
        spec = collection.scenes.draw(rng)
    plain = replace(spec, person=None, prop=None, bar=None, title=None)
    image, scene = stills.turn_upside_down(*collection.draw_frame(key, plain))
    collection.add_still(key, image, "JPEG", scene=scene, note="the pixels stand on their head, without a tag")


def _add_documents(collection: Collection) -> None:
    def typed() -> Page:
        return Page("typed", collection.draw_lines())

    def scanned() -> Page:
        return Page("scanned", collection.draw_lines())

    collection.add_document("documents/report.pdf", [typed(), typed(), typed()], "a text layer on each page")
    collection.add_document("documents/scan.pdf", [scanned(), scanned()], "pages as pictures, no text layer")
    collection.add_document("documents/mixed.pdf", [typed(), scanned()], "one page typed, one scanned")
    image, scene = collection.draw_frame("documents/illustrated.pdf")
    page = Page("typed", collection.draw_lines(6), image, scene.texts)
    collection.add_document("documents/illustrated.pdf", [page], "a text layer and a picture")


def _add_copies(collection: Collection) -> None:
    collection.add_duplicate("copies/p01 (copy).jpg", "images/photos/p01.jpg")
    collection.add_duplicate("copies/backup/memo.wav", "recordings/memo.wav")
    collection.add_duplicate("copies/backup/scan-2.pdf", "documents/scan.pdf")
    for key, of_key, change in NEAR_COPIES:
        image, scene = change(*collection.drawing_of(of_key))
        collection.add_still(key, image, "JPEG", scene=scene, options={"quality": 60}, near_duplicate_of=of_key)


def _add_outliers(collection: Collection) -> None:
    rng = collection.rng_for("outliers")
    pictures = {
        "strange/noise.jpg": stills.paint_noise(rng, 480, 360),
        "strange/dense text.png": draw_page(rng, 900, 640),
        "strange/plasma.jpg": stills.paint_plasma(rng, 640, 360),
        "strange/gradient.png": stills.paint_gradient(320, 240),
    }
    for key, image in pictures.items():
        kind = "PNG" if key.endswith(".png") else "JPEG"
        collection.add_still(key, image, kind, is_outlier=True, note="unlike the rest of the collection")


def _add_defects(collection: Collection) -> None:
    image, _ = collection.draw_frame("defects/blurred.jpg")
    collection.add_still("defects/blurred.jpg", stills.blur_still(image), "JPEG", quality=("blurred",))
    image, _ = collection.draw_frame("defects/dark.jpg")
    collection.add_still("defects/dark.jpg", stills.darken_still(image), "JPEG", quality=("dark",))
    blank = stills.paint_blank(640, 360)
    collection.add_still("defects/blank.png", blank, "PNG", quality=("blank",))
    collection.add_silence("defects/silence.flac", FLAC, 12.0)


def _add_broken(collection: Collection) -> None:
    film = collection.bytes_of("films/2026/spring/garden.mp4")
    photo = collection.bytes_of("images/photos/p05.jpg")
    garbage = hostile.make_garbage_pdf(collection.rng_for("garbage"))
    _refuse(collection, "broken/empty.jpg", "image", "empty", b"")
    _refuse(collection, "broken/interrupted.mp4", "video", "truncated", hostile.cut_in_half(film))
    _refuse(collection, "broken/half.jpg", "image", "truncated", hostile.cut_in_half(photo))
    _refuse(collection, "broken/huge.png", "image", "too_many_pixels", hostile.make_pixel_bomb())
    _refuse(collection, "broken/garbage.pdf", "document", "corrupt", garbage)
    unsupported = {
        "broken/clip.mp4": hostile.HLS_PLAYLIST,
        "films/2026/spring/list.mkv": hostile.make_concat_script("garden.mp4"),
        "broken/notes.txt": hostile.NOTES,
        "broken/archive.zip": hostile.make_archive(),
    }
    for key, data in unsupported.items():
        collection.add_bytes(key, data, MediaObject(key, "other", "skipped", "unsupported"))


def _refuse(collection: Collection, key: str, kind: MediaKind, reason: str, data: bytes) -> None:
    collection.add_bytes(key, data, MediaObject(key, kind, "dead_letter", reason))
