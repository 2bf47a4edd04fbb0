"""mlx-lm's model classes behind one door: what they expect, what they rename, how they tokenise."""
