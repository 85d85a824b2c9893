"""Speech and a video in, frames out: the smallest program. The result is written to a file here.

python examples/quickstart.py [VIDEO SPEECH.wav] OUT.mp4
"""

from __future__ import annotations

import sys

from lipstream import LipSyncEngine, samples
from lipstream.media import VideoWriter, read_audio


def main(video: str, speech: str, out: str) -> None:
    engine = LipSyncEngine.load("tiny")
    sound, rate = read_audio(speech)  # float32 [n, channels]
    with engine.session(engine.prepare(video)) as session:
        session.push_audio(sound, rate)
        session.flush()  # the end: generate it to the last sample
        writer = None
        for frame in session:  # frame.image: uint8 [H, W, 3] RGB; frame.audio: float32, 1/25 s
            if writer is None:
                height, width, _ = frame.image.shape
                writer = VideoWriter(out, width, height, audio_rate=frame.sample_rate)
            writer.write(frame.image)
            writer.write_audio(frame.audio)
        if writer is not None:
            writer.close()


if __name__ == "__main__":
    given = sys.argv[1:]
    if len(given) == 1:
        given = [str(samples.FACE), str(samples.SPEECH), *given]
    if len(given) != 3:
        sys.exit(__doc__)
    main(*given)
