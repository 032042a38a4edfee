"""The paper's Wasserstein bounds as numbers: what a learned draw can be wrong by, certified (eq. 23-30, 53-71).

Theorem 1 and Corollary 1 bound the error of a one-step draw by the residual of the mean-flow identity; Propositions 3
and 4 what it costs to start from N(0, I); Corollaries 2 to 5 join them; the composition carries them over N steps and
chooses the grid. Every bound is a `Certificate` of a squared W2 with its standard error, says in its docstring what is
assumed and what is estimated, and on a mixture stands next to the measured distance (`certify`).

The velocity of the exact flow is known on mixtures. On images only `corollary_1_from_data` (an over-estimate),
`coupled_prior_error`, Proposition 4 and its KL, and `lipschitz` (an estimate, no bound) can be had.
"""

from fewstep.theory.certificate import Certificate, Estimate
from fewstep.theory.certify import ModelCertificate, Row, certify, coupled_bound, measure, second_moment
from fewstep.theory.composition import Level, best_grid, bridge_weights, composed_bound, interpolate_levels
from fewstep.theory.corollaries import corollary_2, corollary_3, corollary_4, corollary_5
from fewstep.theory.exact_flow import data_law, exact_flow_map, posterior_law, velocity
from fewstep.theory.lipschitz import Lipschitz, lipschitz
from fewstep.theory.measured import Distance, conditional_distance, gaussian_distance, sampled_distance
from fewstep.theory.prior import (
    coupled_prior_error,
    kl_by_contraction,
    kl_by_convexity,
    proposition_3,
    proposition_4,
    start_error,
)
from fewstep.theory.residual import corollary_1, corollary_1_from_data, mean_flow_residual, squared_residual, theorem_1

__all__ = [
    "Certificate",
    "Distance",
    "Estimate",
    "Level",
    "Lipschitz",
    "ModelCertificate",
    "Row",
    "best_grid",
    "bridge_weights",
    "certify",
    "composed_bound",
    "conditional_distance",
    "corollary_1",
    "corollary_1_from_data",
    "corollary_2",
    "corollary_3",
    "corollary_4",
    "corollary_5",
    "coupled_bound",
    "coupled_prior_error",
    "data_law",
    "exact_flow_map",
    "gaussian_distance",
    "interpolate_levels",
    "kl_by_contraction",
    "kl_by_convexity",
    "lipschitz",
    "mean_flow_residual",
    "measure",
    "posterior_law",
    "proposition_3",
    "proposition_4",
    "sampled_distance",
    "second_moment",
    "squared_residual",
    "start_error",
    "theorem_1",
    "velocity",
]
