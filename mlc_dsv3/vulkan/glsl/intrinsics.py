"""TIR's mathematical functions in GLSL.

GLSL leaves some of them out, and asks too little of others (sin is off by 5e-4 at worst): those are functions of ours.
"""

from __future__ import annotations

from mlc_dsv3.vulkan.errors import Unsupported
from mlc_dsv3.vulkan.glsl.types import Scalar, Types

# Functions of float32 by GLSL's own names, or ours below.
_FLOAT = {
    "exp": "exp",
    "exp2": "exp2",
    "exp10": "exp10_",
    "log": "log",
    "log2": "log2",
    "log10": "log10_",
    "log1p": "log1p_",
    "sqrt": "sqrt",
    "rsqrt": "inversesqrt",
    "sin": "sin_",
    "cos": "cos_",
    "tan": "tan_",
    "sinh": "sinh_",
    "cosh": "cosh",
    "tanh": "tanh_",
    "asin": "asin_",
    "acos": "acos_",
    "atan": "atan",
    "atan2": "atan",
    "asinh": "asinh",
    "acosh": "acosh",
    "atanh": "atanh",
    "erf": "erf_",
    "pow": "pow_",
    "sigmoid": "sigmoid_",
    "hypot": "length_",
    "copysign": "copysign_",
    "ldexp": "ldexp_",
    "fmod": "fmod_",
    "round": "round_",
}
# These are exact, or as good as the arithmetic, in every width.
_ANY_FLOAT = {
    "fabs": "abs",
    "floor": "floor",
    "ceil": "ceil",
    "trunc": "trunc",
    "nearbyint": "roundEven",
    "fma": "fma",
    "fmin": "min",
    "fmax": "max",
}
_EXACT_IN_DOUBLE = ("sqrt",)

HELPERS = {
    "exp10_": "float exp10_(float x) { return exp2(x * 3.321928094887362f); }",
    "log10_": "float log10_(float x) { return log2(x) * 0.3010299956639812f; }",
    "log1p_": """\
float log1p_(float x) {
    float u = 1.0f + x;
    return u == 1.0f ? x : isinf(u) ? u : log(u) * (x / (u - 1.0f));
}""",
    # Range reduction by pi/2 in three parts (Cody and Waite), and Taylor polynomials on [-pi/4, pi/4].
    "sin_": """\
float sin_quadrant(float x, int shift) {
    float k = roundEven(x * 0.6366197723675814f);
    float r = fma(-k, 1.5703125f, x);
    r = fma(-k, 4.837512969970703e-4f, r);
    r = fma(-k, 7.549789948768648e-8f, r);
    float s = r * r;
    float odd = r * fma(s, fma(s, fma(s, fma(s, 2.7557319e-6f, -1.9841270e-4f), 8.3333333e-3f), -0.16666667f), 1.0f);
    float even = fma(s, fma(s, fma(s, fma(s, 2.4801587e-5f, -1.3888889e-3f), 4.1666667e-2f), -0.5f), 1.0f);
    int quadrant = (int(k) + shift) & 3;
    float value = (quadrant & 1) == 0 ? odd : even;
    return (quadrant & 2) == 0 ? value : -value;
}
float sin_(float x) { return sin_quadrant(x, 0); }""",
    "cos_": "float cos_(float x) { return sin_quadrant(x, 1); }",
    "tan_": "float tan_(float x) { return sin_quadrant(x, 0) / sin_quadrant(x, 1); }",
    # GLSL's own are off by 1e-4 on some devices.
    "asin_": "float asin_(float x) { return atan(x, sqrt((1.0f - x) * (1.0f + x))); }",
    "acos_": "float acos_(float x) { return atan(sqrt((1.0f - x) * (1.0f + x)), x); }",
    "sinh_": """\
float sinh_(float x) {
    float s = x * x;
    if (s < 0.25f) return x * fma(s, fma(s, fma(s, 1.98412698e-4f, 8.3333333e-3f), 0.16666667f), 1.0f);
    float e = exp(abs(x) - 0.6931471805599453f);
    return sign(x) * (e - 0.25f / e);
}""",
    "tanh_": """\
float tanh_(float x) {
    float s = x * x;
    if (s < 0.01f) return x * fma(s, fma(s, fma(s, -0.05396825f, 0.13333333f), -0.33333333f), 1.0f);
    return sign(x) * (1.0f - 2.0f / (exp(2.0f * abs(x)) + 1.0f));
}""",
    # Abramowitz and Stegun 7.1.26; near zero the series.
    "erf_": """\
float erf_(float x) {
    float a = abs(x), s = x * x;
    if (a < 0.3f)
        return x * fma(s, fma(s, fma(s, fma(s, 5.2239776e-3f, -2.6866170e-2f), 0.11283792f), -0.37612639f), 1.1283792f);
    float t = 1.0f / fma(0.3275911f, a, 1.0f);
    float q = fma(t, fma(t, fma(t, 1.061405429f, -1.453152027f), 1.421413741f), -0.284496736f);
    float p = t * fma(t, q, 0.254829592f);
    return sign(x) * (1.0f - p * exp(-s));
}""",
    "pow_": """\
float pow_(float x, float y) {
    if (y == 0.0f) return 1.0f;
    if (x > 0.0f) return pow(x, y);
    float magnitude = x == 0.0f ? (y > 0.0f ? 0.0f : uintBitsToFloat(0x7f800000u)) : pow(-x, y);
    if (trunc(y) != y) return x == 0.0f ? magnitude : uintBitsToFloat(0x7fc00000u);
    bool odd = abs(y) < 16777216.0f && (int(y) & 1) != 0;
    return odd && x < 0.0f ? -magnitude : magnitude;
}""",
    "sigmoid_": "float sigmoid_(float x) { return 1.0f / (1.0f + exp(-x)); }",
    "length_": "float length_(float x, float y) { return length(vec2(x, y)); }",
    "copysign_": """\
float copysign_(float x, float y) {
    return uintBitsToFloat((floatBitsToUint(x) & 0x7fffffffu) | (floatBitsToUint(y) & 0x80000000u));
}""",
    "ldexp_": "float ldexp_(float x, float n) { return ldexp(x, int(n)); }",
    "fmod_": "float fmod_(float x, float y) { return x - y * trunc(x / y); }",
    # Half away from zero; a half less its last bit leaves 0.49999997 below one.
    "round_": "float round_(float x) { return trunc(x + sign(x) * 0.49999997f); }",
    "round_to_half": "float round_to_half(float x) { return unpackHalf2x16(packHalf2x16(vec2(x, 0.0f))).x; }",
}
_NEEDS = {"cos_": "sin_", "tan_": "sin_"}


def is_function(name: str) -> bool:
    """Whether TIR's operator, or C's function without its last f, is one of these."""
    return name in _FLOAT or name in _ANY_FLOAT


def function(types: Types, name: str, arguments: list[str], of: Scalar) -> str:
    """A call of a function of floats on one lane."""
    if of.kind != "float":
        if name == "fabs":
            return f"abs({arguments[0]})"
        raise Unsupported(f"{name} of {of.name}")
    glsl = _ANY_FLOAT.get(name) or _FLOAT[name]
    if of.bits == 64 and name not in (*_ANY_FLOAT, *_EXACT_IN_DOUBLE):
        raise Unsupported(f"{name} of float64, which GLSL has for float32 alone")
    if of.bits == 16:
        return in_float32(types, glsl, arguments, of)
    return f"{glsl}({', '.join(arguments)})"


def in_float32(types: Types, glsl: str, arguments: list[str], of: Scalar) -> str:
    """A call of GLSL's function in float32, for float16: the functions of float16 itself need what compilers of
    shaders forget to declare."""
    wide = ", ".join(f"float({argument})" for argument in arguments)
    return types.cast(f"{glsl}({wide})", Scalar("float32", "float", 32), of)


def helpers(text: str) -> list[str]:
    """Our functions that a shader's text calls, in an order in which they can stand."""
    used = [name for name in HELPERS if f"{name}(" in text]
    needed = {_NEEDS[name] for name in used if name in _NEEDS} | set(used)
    return [HELPERS[name] for name in HELPERS if name in needed]
