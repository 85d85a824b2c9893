"""Training data this project makes itself: speech, and drawn faces that say it."""
