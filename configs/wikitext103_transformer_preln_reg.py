"""The pre-norm DEQ-Transformer on WikiText-103 with the Jacobian loss.

Paper: Bai, Koltun, Kolter, Stabilizing Equilibrium Models by Jacobian Regularization, 2021
    (2106.14342).
Published: no figure for this variant; 23.8 perplexity (test) for the post-norm one.
Cost: 97,851,488 parameters as the script counts them (97,691,888 with tied projections once);
    300,000 steps of 56 segments of 150 words (4 GPUs in the original).
The released recipe moves the tied projections of the adaptive softmax twice a step, once for each
    use, and so does this one (model.transformer.projection_updates="each_use").
    On steps with the Jacobian loss the original draws the solver's limit from -2 to 0 around its
    own, this project from -2 to 1.

    python train.py --config=configs/wikitext103_transformer_preln_reg.py --config.data.data_dir=DIR
    python eval.py --config=configs/wikitext103_transformer_preln_reg.py --workdir=DIR \\
        --config.data.data_dir=DIR --config.data.eval_split=test \\
        --config.model.transformer.mem_len=300 --config.solver.forward.max_steps=30
"""

from mdeq_jax.configs import wikitext103_transformer


def get_config():
    config = wikitext103_transformer.get_config().unlock()
    config.name = "wikitext103_transformer_preln_reg"

    config.model.transformer.pre_lnorm = True
    config.model.transformer.dropout = 0.06
    config.model.transformer.dropatt = 0.01
    config.model.transformer.mem_len = 300

    config.solver.forward.max_steps = 14
    config.solver.backward.max_steps = 14
    config.jacobian.weight = 2.0
    config.jacobian.frequency = 0.4
    config.jacobian.increment_every = 30_000
    config.train.random_forward_delta = 2
    config.train.random_forward_above = 0
    return config.lock()
