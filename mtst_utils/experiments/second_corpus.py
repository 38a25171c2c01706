"""Do the headlines carry over to other text? Four declared studies again, on tweets whose sentiment
a crowd panel named.

The designs are those of the rated sentences, with the arms and sizes that the headlines rest on.
Each arm is tuned anew on tweets. Method in data/METHOD.md.
"""

from mtst_utils.experiments.bake_off import BAKE_OFF
from mtst_utils.experiments.designs import TWEETS, Study
from mtst_utils.experiments.few_labels import FEW_LABELS
from mtst_utils.experiments.forgetting import FORGETTING
from mtst_utils.experiments.tasks import TOGETHER

SEEDS = 10
_AGAIN = (  # study, arms, sizes
    (FEW_LABELS, ("tuned probe", "set probe", "full", "LoRA"), (128, 512)),
    (BAKE_OFF, ("two rates", "gradual", "decay 0.95"), (200,)),
    (FORGETTING, ("before", "none", "backbone frozen", "distillation"), (500,)),
    (TOGETHER, ("joint", "sentiment alone", "domain alone"), (500,)),
)
ON_TWEETS: tuple[Study, ...] = tuple(
    study.repeated(f"{study.name}_tweets", TWEETS, arms, sizes, SEEDS)
    for study, arms, sizes in _AGAIN
)
