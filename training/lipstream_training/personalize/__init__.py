"""`lipstream personalize`: tune a student's decoder, and the student, to one person by a video of that person."""
