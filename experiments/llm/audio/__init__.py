"""Recordings: their files, and what networks of the family Whisper read."""
