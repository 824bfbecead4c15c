"""TIR → GLSL."""
