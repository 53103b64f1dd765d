"""The error function on every array library."""

from __future__ import annotations

from growarray.backend import Array, kind_of, namespace, special_functions


def erf(x: Array) -> Array:
    """Error function: SciPy's on NumPy, cupyx's on CuPy, :func:`portable_erf` elsewhere."""
    special = special_functions(x)
    if special is None:
        return portable_erf(x)
    y = special.erf(x)
    return namespace(x).astype(y, x.dtype, copy=False) if kind_of(x) == "f" else y  # SciPy has none of half precision


# Cody 1969, Rational Chebyshev approximations for the error function: numerator and denominator,
# highest power first, for |x| <= 15/32, 15/32 < |x| <= 4 and |x| > 4. Relative error under 1e-15.
_NEAR = (
    (1.85777706184603153e-1, 3.16112374387056560, 1.13864154151050156e2, 3.77485237685302021e2, 3.20937758913846947e3),
    (1.0, 2.36012909523441209e1, 2.44024637934444173e2, 1.28261652607737228e3, 2.84423683343917062e3),
)
_MIDDLE = (
    (2.15311535474403846e-8, 5.64188496988670089e-1, 8.88314979438837594, 6.61191906371416295e1)
    + (2.98635138197400131e2, 8.81952221241769090e2, 1.71204761263407058e3, 2.05107837782607147e3)
    + (1.23033935479799725e3,),
    (1.0, 1.57449261107098347e1, 1.17693950891312499e2, 5.37181101862009858e2, 1.62138957456669019e3)
    + (3.29079923573345963e3, 4.36261909014324716e3, 3.43936767414372164e3, 1.23033935480374942e3),
)
_FAR = (
    (1.63153871373020978e-2, 3.05326634961232344e-1, 3.60344899949804439e-1, 1.25781726111229246e-1)
    + (1.60837851487422766e-2, 6.58749161529837803e-4),
    (1.0, 2.56852019228982242, 1.87295284992346047, 5.27905102951428412e-1)
    + (6.05183413124413191e-2, 2.33520497626869185e-3),
)


def _rational(coefficients: tuple[tuple[float, ...], tuple[float, ...]], x: Array) -> Array:
    top, bottom = coefficients
    p, q = x * 0.0 + top[0], x * 0.0 + bottom[0]
    for a in top[1:]:
        p = p * x + a
    for b in bottom[1:]:
        q = q * x + b
    return p / q


def portable_erf(x: Array) -> Array:
    """Error function from array-API operations alone; agrees with SciPy's to a few units in the last place."""
    xp = namespace(x)
    x = xp.clip(x, -30.0, 30.0)  # erf is 1 to the last bit long before, and inf * 0 is not a number
    size = xp.abs(x)
    near = x * _rational(_NEAR, xp.where(size <= 0.46875, x * x, x * 0.0))
    middle = xp.where((size > 0.46875) & (size <= 4.0), size, x * 0.0 + 1.0)
    centre = 1.0 - xp.exp(-middle * middle) * _rational(_MIDDLE, middle)
    far = xp.where(size > 4.0, size, x * 0.0 + 5.0)
    inverse = 1.0 / (far * far)
    tail = 1.0 - xp.exp(-far * far) / far * (0.5641895835477563 - inverse * _rational(_FAR, inverse))
    value = xp.where(size <= 4.0, centre, tail)
    return xp.where(size <= 0.46875, near, xp.sign(x) * value)
