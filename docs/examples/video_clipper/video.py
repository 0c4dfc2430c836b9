"""Cutting videos with ffmpeg; nothing here knows of operators."""

import subprocess
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlsplit
from uuid import uuid4

from imageio_ffmpeg import count_frames_and_secs, get_ffmpeg_exe

# No playlist, which names other files, and no text, which ffmpeg would paint as a video.
FORMATS = "asf,avi,flv,matroska,mov,mpeg,mpegts,ogg,webm"


def local_file(uri: str) -> Path:
    """Return the path of the file that a ``file://`` URI names, or raise ``OSError``."""
    parts = urlsplit(uri)
    if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
        raise ValueError(f"file:///… was expected, not {uri!r:.80}")
    path = Path(unquote(parts.path))
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    return path


def cut(
    video: Path, folder: Path, *, start: float, duration: float, timeout: float
) -> tuple[Path, int, float]:
    """
    Write a part of a video into a folder; return its path, frames and seconds.

    The part begins at *start* and lasts *duration* seconds, or less where the video ends. Raises
    ``ValueError`` where there is nothing to cut, and ``TimeoutError`` after *timeout* seconds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:  # a clip appears when it is whole
        draft = Path(scratch, "clip.mp4")
        command = [get_ffmpeg_exe(), "-v", "error", "-abort_on", "empty_output"]
        command += ["-format_whitelist", FORMATS, "-protocol_whitelist", "file"]
        command += ["-ss", f"{start:.6f}", "-i", f"file:{video}", "-t", f"{duration:.6f}"]
        command += ["-map", "0:v:0", "-map", "0:a?", str(draft)]
        try:
            subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=True
            )
            frames, seconds = count_frames_and_secs(draft)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"ffmpeg took more than {timeout:g} s") from None
        except subprocess.CalledProcessError as error:
            said = error.stderr.decode("utf-8", "replace").strip().partition("\n")[0]
            raise ValueError(f"ffmpeg cannot clip {video}: {said.rpartition('] ')[2]}") from None
        except RuntimeError:  # only sound is left
            raise ValueError(f"cannot clip {video}: no pictures from {start:g} s on") from None
        return draft.rename(folder / f"{uuid4().hex}.mp4"), frames, seconds
