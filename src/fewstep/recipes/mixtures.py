"""Mixtures that are harder than the ring: the asymmetric reference problem, and correlations in sixteen dimensions."""

from dataclasses import replace

from fewstep.datasets import T2, Correlated
from fewstep.recipes._rivals import calibrated, rivals
from fewstep.recipes.ring import ring_stmd

t2_stmd = replace(
    ring_stmd,
    name="t2-stmd",
    description="STMD by velocity, semigroup and energy score on the asymmetric mixture of three components (minutes on a CPU)",
    dataset=T2(),
)

correlated_stmd = replace(
    ring_stmd,
    name="correlated-stmd",
    description="STMD by velocity, semigroup and energy score on a correlated mixture in 16 dimensions (minutes on a CPU)",
    dataset=Correlated(),
    objective=calibrated(weight=4.0, share=0.5, detour=0.5),  # a score grows as d^(1/2), the velocity's error as d
)

t2 = rivals(t2_stmd, "on the asymmetric mixture, with the network and the budget of t2-stmd")
correlated = rivals(correlated_stmd, "on the correlated mixture, with the network and the budget of correlated-stmd")
