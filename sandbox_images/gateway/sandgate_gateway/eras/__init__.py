"""The two protocol eras and the way from one to the other: pass-through on the diagonal, translation off it."""
