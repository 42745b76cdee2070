"""DEQ-Transformer on WikiText-103, as released: the exact implicit gradient.

Paper: Bai, Kolter, Koltun, Deep Equilibrium Models, 2019 (1909.01377).
Published: 23.2 perplexity (test).
Cost: 97,851,488 parameters as the script counts them (97,691,888 with tied projections once);
    300,000 steps of 56 segments of 150 words (4 GPUs in the original).
The released recipe moves the tied projections of the adaptive softmax twice a step, once for each
    use, and so does this one (model.transformer.projection_updates="each_use").

    python train.py --config=configs/wikitext103_transformer.py --config.data.data_dir=DIR
    python eval.py --config=configs/wikitext103_transformer.py --workdir=DIR \\
        --config.data.data_dir=DIR --config.data.eval_split=test \\
        --config.model.transformer.mem_len=300 --config.solver.forward.max_steps=30
"""

from mdeq_jax.configs import default


def get_config():
    config = default.get_config("deq_transformer")
    config.name = "wikitext103_transformer"

    model = config.model.transformer
    model.vocab_size = 267_735
    model.cutoffs = (20_000, 40_000, 200_000)
    model.div_val = 4
    model.tie_projs = (False, True, True, True)
    model.projection_updates = "each_use"
    model.d_embed = 700
    model.d_model = 700
    model.n_head = 10
    model.d_head = 70
    model.d_inner = 48_000
    model.n_layer = 2
    model.pre_lnorm = False
    model.weight_norm = True
    model.dropout = 0.05
    model.dropatt = 0.0
    model.mem_len = 150
    model.local_size = 0

    config.solver.forward.name = "anderson"
    config.solver.forward.m = 6
    config.solver.forward.lam = 1e-4
    config.solver.forward.beta = 1.0
    config.solver.forward.max_steps = 30
    config.solver.backward.name = "broyden"
    config.solver.backward.max_steps = 35
    config.gradient.name = "ift"
    config.gradient.linearize_at = "z_star"

    config.train.epochs = 300_000 / 12_289  # the original's number of steps
    config.train.batch_size = 56
    config.train.optimizer = "adam"
    config.train.learning_rate = 2.5e-4
    config.train.end_learning_rate = 0.0
    config.train.warmup_steps = 16_000
    config.train.schedule_from_start = True
    config.train.first_step_at_full_rate = True
    config.train.grad_clip = 0.25
    config.train.grad_clip_eps = 1e-6
    config.train.pretrain_steps = 32_000
    config.train.pretrain_layers = 2

    config.data.name = "wikitext103"
    config.data.segment_length = 150
    config.eval.batch_size = 16
    config.eval.every_epochs = 5_000 / 12_289
    config.checkpoint.every_epochs = 5_000 / 12_289
    return config.lock()
