"""One file in, its facts and segments out: the door to all decoders.

Put here: the choice of decoder. Keep out: processes and limits of the operating system (``worker``, ``sandbox``).
"""

from pathlib import Path

from mm_assets.errors import ObjectError, Reason
from mm_assets.limits import MediaLimits
from mm_assets.media.documents import decode_pdf
from mm_assets.media.images import decode_image
from mm_assets.media.segments import MediaFacts, SegmentWriter
from mm_assets.media.sniff import sniff
from mm_assets.media.video import decode_timed

HEAD_BYTES = 4_096


def decode_file(file: Path, limits: MediaLimits, out: SegmentWriter) -> MediaFacts:
    """Decode one file by its content; its name says nothing.

    Hostile media may crash, hang or fill memory here: call it in the guarded child only.

    Raises
    ------
    ObjectError
        corrupt, unsupported or too_large.
    """
    with file.open("rb") as stream:
        head = stream.read(HEAD_BYTES)
    if not head:
        raise ObjectError(Reason.CORRUPT, "object is empty")
    media_type = sniff(head)
    if media_type is None:
        raise ObjectError(Reason.UNSUPPORTED, "first bytes are of no format that is decoded here")
    if media_type.kind == "image":
        return decode_image(file, media_type.container, limits, out)
    if media_type.kind == "document":
        return decode_pdf(file, limits, out)
    return decode_timed(file, media_type, limits, out)
