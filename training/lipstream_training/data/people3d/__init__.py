"""3D people who speak by phonemes: training clips and videos beside the drawn ones (extra ``[people]``)."""
