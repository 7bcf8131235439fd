"""All rules of a diagnosis, in the order in which they are checked."""

from bnlab_callbacks.diagnosis.rules.activation_rules import ACTIVATION_RULES
from bnlab_callbacks.diagnosis.rules.batch_norm_rules import BATCH_NORM_RULES
from bnlab_callbacks.diagnosis.rules.gradient_rules import GRADIENT_RULES
from bnlab_callbacks.diagnosis.rules.initial_weight_rules import INITIAL_WEIGHT_RULES
from bnlab_callbacks.diagnosis.rules.learning_rate_rules import LEARNING_RATE_RULES
from bnlab_callbacks.diagnosis.rules.loss_rules import LOSS_RULES
from bnlab_callbacks.diagnosis.rules.optimizer_rules import OPTIMIZER_RULES
from bnlab_callbacks.diagnosis.rules.precision_rules import PRECISION_RULES
from bnlab_callbacks.diagnosis.rules.rule import Rule
from bnlab_callbacks.diagnosis.rules.schedule_rules import SCHEDULE_RULES
from bnlab_callbacks.diagnosis.rules.task_rules import TASK_RULES

RULES: tuple[Rule, ...] = (
    *LOSS_RULES,
    *TASK_RULES,
    *OPTIMIZER_RULES,
    *SCHEDULE_RULES,
    *PRECISION_RULES,
    *LEARNING_RATE_RULES,
    *GRADIENT_RULES,
    *ACTIVATION_RULES,
    *INITIAL_WEIGHT_RULES,
    *BATCH_NORM_RULES,
)
