"""All advice of the rules and of the preflight: plain texts under keys that stay the same from release to release."""

from bnlab_callbacks.diagnosis.findings import Advice

_OWN_INIT = "the activation's own initialization"
_BETTER_INIT = f"{_OWN_INIT}, or batch normalization"

ADVICE = {
    # learning rate and optimizer
    "lower_learning_rate": "a lower learning rate",
    "a_tenth_of_the_learning_rate": "a learning rate ten times lower",
    "a_third_to_a_tenth_of_the_learning_rate": "a learning rate three to ten times lower",
    "higher_learning_rate": "a learning rate ten to a hundred times higher",
    "another_learning_rate": "another learning rate",
    "stable_learning_rate": "a learning rate of {lr:.1g}, or a warm-up",
    "a_tenth_of_the_learning_rate_or_better_init": (
        "a learning rate ten times lower or the activation's own initialization"
    ),
    "lower_learning_rate_or_batch_norm": "a lower learning rate or batch normalization",
    "lower_learning_rate_or_clip": ("a lower learning rate, or gradient clipping with Trainer(gradient_clip_val=1.0)"),
    "looser_clip": "a clip near the usual norm of the gradient, with Trainer(gradient_clip_val=…)",
    "warm_up": "a warm-up",
    "warm_up_or_batch_norm": "a warm-up, or batch normalization",
    "bf16": "bf16-mixed instead of 16-mixed as the Trainer's precision",
    "mixed_precision": (
        "bf16-mixed instead of bf16-true (16-mixed instead of 16-true) as the Trainer's precision, or an optimizer "
        "with stochastic rounding"
    ),
    "mixed_precision_or_epsilon": "16-mixed instead of 16-true as the precision, or eps=1e-4 in the optimizer",
    "bf16_true": "bf16-true instead of 16-true",
    "lower_loss_scale": "a lower initial loss scale",
    "all_parameters_to_the_optimizer": "give all of self.parameters() to the optimizer",
    "configure_optimizers": "give them to the optimizer in configure_optimizers",
    "check_parameter_groups": "check the learning rates of its parameter groups",
    "optimizer_of_this_model": "make the optimizer from the model that is trained, after all of its parts are made",
    "clear_gradients": "call zero_grad() of the optimizer before each backward pass",
    "schedule_by_step": (
        'step the schedule after each batch: "interval": "step" beside the scheduler in configure_optimizers'
    ),
    "schedule_by_epoch": (
        'step the schedule once an epoch ("interval": "epoch" in configure_optimizers), or build it for all steps'
    ),
    "schedule_for_this_run": "build the schedule for the steps that the run makes: trainer.estimated_stepping_batches",
    "schedule_interval": 'step it once an epoch, where it counts epochs ("interval": "epoch" in configure_optimizers)',
    # weights and activations
    "better_init": _BETTER_INIT,
    "own_init": _OWN_INIT,
    "larger_init": "larger initial weights",
    "random_weights": "random weights, by the activation's own initialization",
    "smaller_last_layer": "smaller weights in the last layer",
    "smaller_last_layer_or_better_init": f"smaller weights in the last layer; {_BETTER_INIT}",
    "smaller_last_layer_or_own_init": f"smaller weights in the last layer; {_OWN_INIT}",
    "leaky_activation": "leaky ReLU or ELU instead of ReLU",
    "zero_biases": "biases of 0",
    "zero_biases_or_leaky_activation": "biases of 0; leaky ReLU or ELU instead of ReLU",
    "skips": "skip connections",
    "unsaturated_activation_or_skips": ("an activation that does not saturate, such as ReLU, or skip connections"),
    # inputs, labels and the way to the loss
    "standardise": "subtract the training set's mean and divide by its standard deviation",
    "check_for_nan": "check inputs and labels of this step for NaN",
    "check_inputs": "look at the inputs",
    "check_inputs_or_better_init": f"look at the inputs; {_BETTER_INIT}",
    "check_inputs_or_own_init": f"look at the inputs; {_OWN_INIT}",
    "check_labels": "check that labels belong to their inputs",
    "check_formula": (
        "a loss of torch.nn.functional that takes logits, instead of log or a division of what may be 0 or negative"
    ),
    "logits": "give the loss logits: leave out the softmax or sigmoid before it",
    "log_probabilities": "F.cross_entropy instead of F.nll_loss, or log_softmax before it",
    "minimise": "leave out the minus sign: the optimizer makes the loss small",
    "one_output_a_class": "one output for each class and F.cross_entropy; targets of 0 and 1 for one output",
    "reachable_targets": "an output without an activation, or targets that are scaled into its range",
    "same_shapes": "outputs and targets of one shape, such as outputs.squeeze(1) against targets of shape (N,)",
    "sigmoid_instead": "a sigmoid for one output; softmax over the classes, dim=1, for several",
    "return_the_loss": "return the loss with its graph",
    "connect_to_the_loss": (
        "use the layer's output in the loss, and look for detach(), .data, no_grad or argmax on the way"
    ),
    "way_to_the_loss": (
        "look at the way from the net to its loss: a softmax over one output or over the batch, outputs that are all "
        "0, rounding, argmax, detach()"
    ),
    "activation_between": "an activation function between them",
    "look_behind_the_layer": "look for dead units or zero weights in the layers behind it",
    "use_or_freeze": "use or freeze them",
    "unfreeze": "set requires_grad=True, if that is not meant",
    # batch norm
    "batch_norm": "batch normalization",
    "batch_norm_momentum": "momentum 0.1",
    "reset_running_stats": "call reset_running_stats() on these layers, and leave such batches out before the net",
    "larger_batch": "a larger batch",
    "larger_batch_or_other_norm": "a larger batch, or group or layer norm",
    "larger_batch_or_sync": ("a larger batch, group or layer norm, or Trainer(sync_batchnorm=True) on several GPUs"),
    "no_decay_of_scales": "no weight decay on the scales of norms",
    "train_mode": "call train() on the module before training; freeze the scales too if it is meant",
    "train_mode_or_freeze": (
        "call train() on the module, or set requires_grad=False on their parameters, if that is meant"
    ),
}


def advice(*keys: str) -> tuple[Advice, ...]:
    """The advice under these keys."""
    return tuple(Advice(key, ADVICE[key]) for key in keys)
