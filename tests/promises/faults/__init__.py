"""What can become of a Redis, done to real ones, and who asks meanwhile: for P5."""
