"""DEQ-Transformer on WikiText-103 with phantom gradients: no backward solve.

Paper: Geng, Kolter, TorchDEQ, 2023 (2310.18605); Geng et al., On Training Implicit Models, 2021
    (2111.05177).
Published: 22.3 perplexity (test) at memory 150, with TorchDEQ.
Cost: 97,851,488 parameters as the script counts them (97,691,888 with tied projections once);
    300,000 steps of 56 segments of 150 words (4 GPUs in the original).
The network and the schedule are those of wikitext103_transformer. The numbers of solver steps and
    of gradient steps, and tau, are choices of this project: no released recipe of the
    published figure was found.

    python train.py --config=configs/wikitext103_phantom.py --config.data.data_dir=DIR
    python eval.py --config=configs/wikitext103_phantom.py --workdir=DIR \\
        --config.data.data_dir=DIR --config.data.eval_split=test \\
        --config.model.transformer.mem_len=150 --config.solver.forward.max_steps=30
"""

from mdeq_jax.configs import wikitext103_transformer


def get_config():
    config = wikitext103_transformer.get_config().unlock()
    config.name = "wikitext103_phantom"

    config.model.transformer.projection_updates = "once"
    config.solver.forward.max_steps = 12
    config.solver.backward.max_steps = 20  # the default: it has no effect
    config.gradient.name = "phantom"
    config.gradient.linearize_at = None
    config.gradient.steps = 5
    config.gradient.tau = 0.5

    config.train.pretrain_steps = 0
    config.train.pretrain_layers = 0
    return config.lock()
