"""How good the lips of a result are: people who say something known, real clips, and what is measured on both."""
