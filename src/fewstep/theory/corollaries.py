"""One step, from end to end: the flow's error and the prior's error in one bound (Corollaries 2 to 5).

The text of the paper that is at hand has lost these formulas: (30), (66) and (69)-(71) are reconstructed.
"""

import math

from fewstep.errors import UserError
from fewstep.theory.certificate import Certificate, Estimate, positive


def corollary_2(flow: Estimate, prior: Certificate) -> Certificate:
    """`W2^2(generated, data) <= 2 (Proposition 3) + 2 int e` (Corollary 2, eq. 30), for one step from N(0, I).

    `flow` is Corollary 1 at tau = 1 and `prior` Proposition 3 or, better where there is data, `coupled_prior_error`.
    The term `minkowski`, `(sqrt(prior) + sqrt(flow))^2`, is never larger and as true; our own.
    """
    return _sum(flow, prior)


def corollary_3(flow: Estimate, prior: Certificate) -> Certificate:
    """`W2^2(generated, data) <= 2 (Proposition 4) + 2 int e` (Corollary 3, eq. 66): both laws in a ball of radius R."""
    return _sum(flow, prior)


def corollary_4(flow: Estimate, radius: float, kl_data: float, accuracy: float) -> Certificate:
    """The horizon that brings Corollary 3 down to `accuracy^2`: `alpha_T <= (accuracy^2 - 2 int e) / (8 R^2 sqrt(KL_0 / 2))`.

    With Proposition 4 by the paper's KL, `8 R^2 alpha_T sqrt(KL_0 / 2) + 2 int e <= accuracy^2`. The term `alpha` is the
    largest `alpha_T` allowed, at most 1; a schedule whose `alpha(1)` is at most that will do. Raises `UserError` where
    the flow alone is worse, or a number is negative.
    """
    slope = 8 * positive("radius", radius) ** 2 * math.sqrt(positive("kl_data", kl_data) / 2)
    alpha = min(1.0, _left(flow, accuracy) / slope) if slope else 1.0
    return _with_horizon(flow, alpha, prior=slope / 2 * alpha)


def corollary_5(flow: Estimate, L: float, second_moment: float, dim: int, accuracy: float) -> Certificate:
    """The horizon that brings Corollary 2 down to `accuracy^2`: `2 L^2 alpha_T^2 (E||X_0||^2 + d) <= accuracy^2 - 2 int e`.

    Because `1 - sigma <= alpha^2 <= alpha`, the left-hand side is at least twice Proposition 3 (eq. 71). Term `alpha` and
    error as in `corollary_4`; L is taken as known. Raises `UserError` where a number is negative, too.
    """
    slope = 2 * positive("L", L) ** 2 * (positive("second_moment", second_moment) + positive("dim", dim))
    alpha = min(1.0, math.sqrt(_left(flow, accuracy) / slope)) if slope else 1.0
    return _with_horizon(flow, alpha, prior=slope / 2 * alpha**2)


def _sum(flow: Estimate, prior: Certificate) -> Certificate:
    return Certificate(
        value=2 * prior.value + 2 * flow.value,
        standard_error=2 * math.hypot(prior.standard_error, flow.standard_error),
        terms={
            "prior": prior.value,
            "flow": flow.value,
            # an unbiased estimate of what is not negative may be
            "minkowski": (math.sqrt(max(prior.value, 0.0)) + math.sqrt(max(flow.value, 0.0))) ** 2,
        },
        estimates=prior.estimates,
    )


def _left(flow: Estimate, accuracy: float) -> float:
    left = accuracy**2 - 2 * flow.value
    if left <= 0:
        raise UserError(
            f"twice the flow's error, {2 * flow.value:.3g}, is above accuracy^2 = {accuracy**2:.3g}: no horizon mends "
            "that; train further or ask for less"
        )
    return left


def _with_horizon(flow: Estimate, alpha: float, prior: float) -> Certificate:
    total = _sum(flow, Certificate(value=prior))
    return Certificate(
        value=total.value,
        standard_error=total.standard_error,
        terms={"alpha": alpha, "prior": prior, "flow": flow.value},
    )
