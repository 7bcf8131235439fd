"""The claims in the order of chapter 8; each names its judge, whose docstring has the rule."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from bnlab.reports.claims.accuracies import compare_sides, dropout_is_best, matches_all, most_gain, smaller_gain
from bnlab.reports.claims.batch_sizes import accuracy_trend, better_at_sizes, overhead_trend
from bnlab.reports.claims.claim import Claim, Conclusion, Judge, Side, at_least, conclude
from bnlab.reports.claims.gradients import larger_gradients, steadier_gradients
from bnlab.reports.claims.training import converges_sooner, trains_only_with_batch_norm
from bnlab.reports.reading.collection import Collection
from bnlab.reports.reading.curves import CurvesOf, read_curves
from bnlab.reports.thesis.experiments import BATCH_SIZES, EXPERIMENTS

_V, _B = False, True


def _both(
    statement: str, quote: str, where: tuple[str, str], experiments: tuple[str, ...], judge: Judge
) -> tuple[Claim, Claim]:
    """A claim on the MLP and the same on the CNN; `{net}` in the statement is their name."""
    mlp, cnn = where
    return (
        Claim("mlp", statement.format(net="MLP"), quote, mlp, experiments, judge),
        Claim("cnn", statement.format(net="CNN"), quote, cnn, experiments, judge),
    )


CLAIMS = (
    # activations
    Claim(
        "cnn",
        "The sigmoid CNN trains only with batch norm.",
        "one can successfully train models with saturating nonlinearities like sigmoid, hyperbolic tangent, or "
        "softplus",
        "8.1.1; 7.2.1, figures 7.18 and 7.19",
        ("sigmoid",),
        trains_only_with_batch_norm("sigmoid"),
    ),
    Claim(
        "mlp",
        "Batch norm raises the sigmoid MLP's accuracy.",
        "we reach a higher overall validation accuracies in all cases by simply adding batch normalization",
        "7.1.1, figure 7.2",
        ("sigmoid",),
        compare_sides(Side("sigmoid", _V), Side("sigmoid", _B)),
    ),
    *_both(
        "With batch norm, the sigmoid {net} stays less accurate than with ReLU.",
        "these models consistently achieve lower accuracies than the same model with rectified nonlinearities",
        ("8.1.1", "8.1.1"),
        ("sigmoid", "relu"),
        compare_sides(Side("sigmoid", _B), Side("relu", _B)),
    ),
    *_both(
        "The {net} with ReLU and batch norm matches or beats ELU, vanilla and batch norm.",
        "batch normalized ReLU networks match or outperform both vanilla and batch normalized ELU networks",
        ("8.1.1; 7.1.1, figure 7.4", "8.1.1; 7.2.1, figure 7.22"),
        ("relu", "elu"),
        matches_all(Side("relu", _B), (Side("elu", _V), Side("elu", _B))),
    ),
    Claim(
        "mlp",
        "Batch norm matches or improves the ELU MLP.",
        "batch normalization either matches or slightly improves ELU networks on all datasets for the MLP model",
        "8.1.1; 7.1.1, figure 7.3",
        ("elu",),
        compare_sides(Side("elu", _V), Side("elu", _B), at_least),
    ),
    # learning rate
    *_both(
        "Batch norm allows learning rate 0.1 where the vanilla {net} does not train.",
        "batch normalization enables significantly higher learning rates without the risk of divergence",
        ("8.1.2; 7.1.2, figures 7.5 and 7.6", "8.1.2; 7.2.2, figures 7.23 and 7.24"),
        ("lr_high",),
        trains_only_with_batch_norm("lr_high"),
    ),
    *_both(
        "With batch norm, learning rate 0.1 does the {net} no harm against 0.01.",
        "Increased learning rates that would cause a vanilla model to diverge can be beneficial in batch "
        "normalized models",
        ("8.3; 7.1.2, figure 7.8", "8.3; 7.2.2, figure 7.27"),
        ("lr_high", "relu"),
        compare_sides(Side("relu", _B), Side("lr_high", _B), at_least),
    ),
    Claim(
        "mlp",
        "At learning rate 0.001 batch norm gains the MLP less than at 0.01.",
        "when the initial learning rate is decreased rather than increased, the effect of the batch normalization "
        "technique diminishes almost entirely",
        "8.1.2; 7.1.2, figure 7.7",
        ("lr_low", "relu"),
        smaller_gain("lr_low", than="relu"),
    ),
    Claim(
        "cnn",
        "At learning rate 0.001 batch norm raises the CNN's accuracy.",
        "batch normalization also helps the convolutional network converge when the learning rate is too low",
        "7.2.2, figure 7.25 (8.1.2 says the opposite)",
        ("lr_low",),
        compare_sides(Side("lr_low", _V), Side("lr_low", _B)),
    ),
    *(
        Claim(
            architecture,
            f"With batch norm, learning rate 0.001 leaves the {architecture.upper()} less accurate than 0.01.",
            quote,
            f"8.1.2; {where}",
            ("lr_low", "relu"),
            compare_sides(Side("lr_low", _B), Side("relu", _B)),
        )
        for architecture, where, quote in (
            (
                "mlp",
                "7.1.2, figure 7.8",
                "the models with a decreased initial learning rate perform strictly worse than the baseline and high "
                "learning rate models",
            ),
            (
                "cnn",
                "7.2.2, figure 7.27",
                "the decreased learning rate has an adverse effect on both the validation accuracy and convergence "
                "speed in all cases",
            ),
        )
    ),
    # initialization
    *(
        Claim(
            architecture,
            f"Initialized with σ = {sigma}, the {architecture.upper()} trains only with batch norm.",
            "one can initialize the weights to almost arbitrary values as long as the symmetry of the weights is "
            "broken",
            f"8.1.3; {where}",
            (experiment,),
            trains_only_with_batch_norm(experiment),
        )
        for architecture, experiment, sigma, where in (
            ("mlp", "init_high", "1", "7.1.3, figure 7.9"),
            ("mlp", "init_low", "0.0001", "7.1.3, figure 7.10"),
            ("cnn", "init_high", "1", "7.2.3, figure 7.28"),
            ("cnn", "init_low", "0.0001", "7.2.3, figure 7.30"),
        )
    ),
    *_both(
        "With batch norm, σ = 1 leaves the {net} less accurate than Kaiming's initialization.",
        "the variance preserving initialization schemes also show their theoretical superiority in practice",
        ("8.1.3; 7.1.3, figure 7.11", "8.1.3; 7.2.3, figure 7.32"),
        ("init_high", "relu"),
        compare_sides(Side("init_high", _B), Side("relu", _B)),
    ),
    *_both(
        "With batch norm, smaller initial weights give the {net} larger gradients.",
        "networks initialized with smaller random values generally lead to larger gradients and thus faster "
        "convergence",
        ("8.1.3; 7.1.3", "8.1.3; 7.2.3, figure 7.31"),
        ("init_high", "init_low"),
        larger_gradients("init_high", "init_low"),
    ),
    *_both(
        "With batch norm, smaller initial weights let the {net} converge in fewer epochs.",
        "networks initialized with smaller random values generally lead to larger gradients and thus faster "
        "convergence",
        ("8.1.3; 7.1.3, figure 7.11", "8.1.3; 7.2.3, figure 7.32"),
        ("init_high", "init_low"),
        converges_sooner(Side("init_high", _B), Side("init_low", _B)),
    ),
    # regularization
    *_both(
        "Batch norm keeps the {net}'s gradients steadier over training.",
        "the magnitude of the gradients remains stable throughout the whole training process",
        ("8.1.4; 7.1.1", "8.1.4; 7.2.1, figure 7.17"),
        ("relu",),
        steadier_gradients("relu"),
    ),
    Claim(
        "cnn",
        "With dropout, the vanilla CNN generalizes better than with batch norm.",
        "vanilla models with dropout generalize better to unseen data than batch normalized models with dropout",
        "8.1.4; 7.2.4, figure 7.33",
        ("dropout",),
        compare_sides(Side("dropout", _B), Side("dropout", _V)),
    ),
    Claim(
        "mlp",
        "With dropout, batch norm raises the MLP's accuracy.",
        "the batch normalized model outperforms the vanilla model on all datasets",
        "7.1.4, figure 7.12 (8.1.4 says the opposite)",
        ("dropout",),
        compare_sides(Side("dropout", _V), Side("dropout", _B)),
    ),
    *(
        Claim(
            architecture,
            f"A small weight decay raises the accuracy of the {architecture.upper()}, {words}.",
            "adding a small amount of L₂ weight regularization to the loss helps the model generalize",
            f"8.1.4; {where}",
            ("weight_decay", "relu"),
            compare_sides(Side("relu", flag), Side("weight_decay", flag)),
        )
        for architecture, where in (("mlp", "7.1.4, figure 7.13"), ("cnn", "7.2.4, figure 7.35"))
        for flag, words in ((_V, "vanilla"), (_B, "with batch norm"))
    ),
    # batch size
    Claim(
        "mlp",
        "With batch norm, smaller batches make the MLP more accurate.",
        "smaller batch sizes work strictly better for batch normalized MLP models",
        "8.1.5; 7.1.5, figure 7.15",
        ("relu",),
        accuracy_trend((_B,), rising=False),
        BATCH_SIZES,
    ),
    Claim(
        "mlp",
        "Smaller batches make the vanilla MLP less accurate.",
        "whereas they worsen the predictive power of their vanilla counterparts",
        "8.1.5; 7.1.5, figure 7.15",
        ("relu",),
        accuracy_trend((_V,), rising=True),
        BATCH_SIZES,
    ),
    Claim(
        "mlp",
        "Batch norm makes the MLP more accurate at batch sizes below 256.",
        "the batch normalized network strictly converges to a higher test accuracy for batch sizes smaller than",
        "7.1.5, figure 7.15",
        ("relu",),
        better_at_sizes(below=256),
        BATCH_SIZES,
    ),
    Claim(
        "cnn",
        "Batch norm makes the CNN more accurate at every batch size.",
        "we can achieve higher validation and test accuracies on all datasets and batch sizes",
        "8.1.5; 7.2.5, figure 7.38",
        ("relu",),
        better_at_sizes(),
        BATCH_SIZES,
    ),
    Claim(
        "cnn",
        "Smaller batches make the CNN more accurate, vanilla and with batch norm.",
        "the absolute generalization performance improves with smaller batch sizes",
        "8.1.5; 7.2.5, figure 7.38",
        ("relu",),
        accuracy_trend((_V, _B), rising=False),
        BATCH_SIZES,
    ),
    # wall time
    Claim(
        "mlp",
        "In the MLP, batch norm's overhead grows with the batch size.",
        "batch normalization adds relatively more overhead with increasing the batch size",
        "8.1.6; 7.1.6, table B.3",
        ("relu",),
        overhead_trend(rising=True),
        BATCH_SIZES,
    ),
    Claim(
        "cnn",
        "In the CNN, batch norm's overhead shrinks with the batch size.",
        "the overhead is negligible and scales nicely with larger batch sizes",
        "8.1.6; 7.2.6, table B.4",
        ("relu",),
        overhead_trend(rising=False),
        BATCH_SIZES,
    ),
    Claim(
        "mlp",
        "Batch norm lets the sigmoid MLP converge in fewer epochs.",
        "the batch normalized model converges to a beneficial parameter state slightly quicker",
        "7.1.1, figure 7.2",
        ("sigmoid",),
        converges_sooner(Side("sigmoid", _V), Side("sigmoid", _B)),
    ),
    Claim(
        "mlp",
        "Batch norm makes the ELU MLP converge in more epochs.",
        "batch normalized networks seem to converge slower than their vanilla counterparts when using ELU activations",
        "7.1.1, figure 7.3",
        ("elu",),
        converges_sooner(Side("elu", _B), Side("elu", _V)),
    ),
    Claim(
        "cnn",
        "Batch norm lets the CNN converge in fewer epochs.",
        "batch normalization achieves slightly higher test accuracies and speeds up convergence",
        "7.2.5; 7.2.1, figure 7.16",
        ("relu",),
        converges_sooner(Side("relu", _V), Side("relu", _B)),
    ),
    # remarks
    *_both(
        "In most experiments batch norm makes the {net} more accurate.",
        "In most experiments, models using batch normalization outperformed their vanilla counterparts",
        ("8.3; table B.1", "8.3; table B.2"),
        tuple(EXPERIMENTS),
        most_gain,
    ),
    Claim(
        "cnn",
        "The most accurate CNN of all is vanilla with dropout.",
        "the best accuracies in our experiments were achieved by a vanilla state-of-the-art model using dropout",
        "8.3; table B.2",
        tuple(EXPERIMENTS),
        dropout_is_best,
    ),
)


def judge_all(
    collection: Collection, claims: Sequence[Claim] = CLAIMS, curves: CurvesOf | None = None
) -> list[Conclusion]:
    """The conclusions on the claims, in their order; the runs' curves are read unless `curves` gives them."""
    curves = curves or cache(lambda run: read_curves(run.folder))
    return [conclude(claim, collection, curves) for claim in claims]
