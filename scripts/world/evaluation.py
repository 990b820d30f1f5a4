"""The evaluation collection: held-out scenes, sentences, faces and texts, enough of each to measure with.

Put here: which objects the evaluation has.
Keep out: how any of them is made, and any measurement.
"""

from world.collection import Collection
from world.demo import FLAC, PCM
from world.documents import Page
from world.encoding import MP3, OPUS
from world.films import FilmRecipe

DEFAULT_SEED = 820_000
N_FILMS, N_SCENES_PER_FILM = 16, 10
N_STILLS = 100
N_RECORDINGS, RECORDING_S = 18, 45.0
N_DOCUMENTS, N_PAGES = 3, 3
RECORDING_CODECS = {"wav": PCM, "flac": FLAC, "mp3": MP3, "ogg": OPUS}


def fill_evaluation(collection: Collection) -> None:
    """Add all objects: 260 scenes, above 10 minutes of speech, above 100 faces."""
    for number in range(1, N_FILMS + 1):
        collection.add_film(f"films/f{number:02d}.mp4", FilmRecipe(N_SCENES_PER_FILM))
    for number in range(1, N_STILLS + 1):
        collection.add_frame(f"images/i{number:03d}.jpg", "JPEG")
    suffixes = tuple(RECORDING_CODECS)
    for number in range(1, N_RECORDINGS + 1):
        suffix = suffixes[number % len(suffixes)]
        collection.add_recording(f"recordings/r{number:02d}.{suffix}", RECORDING_CODECS[suffix], RECORDING_S)
    for number in range(1, N_DOCUMENTS + 1):
        styles = ("typed", "scanned", "scanned")[:N_PAGES]
        pages = [Page("typed" if style == "typed" else "scanned", collection.draw_lines()) for style in styles]
        collection.add_document(f"documents/d{number:02d}.pdf", pages)
