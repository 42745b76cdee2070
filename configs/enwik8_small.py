"""A small character-level DEQ-Transformer on enwik8, for one GPU. Not trained to its end.

Model: Bai, Kolter, Koltun, Deep Equilibrium Models, 2019 (1909.01377), with phantom gradients (Geng
    et al. 2021, 2111.05177).
Cost: 8.5 million parameters; 4 passes over 90 million characters, 10,988 steps of 64 segments of
    512 characters.

    python train.py --config=configs/enwik8_small.py --config.data.data_dir=DIR
    python eval.py --config=configs/enwik8_small.py --workdir=runs/enwik8_small \\
        --config.data.data_dir=DIR --config.data.eval_split=test
"""

from mdeq_jax.configs import default


def get_config():
    config = default.get_config("deq_transformer")
    config.name = "enwik8_small"

    model = config.model.transformer
    model.d_embed = 512
    model.d_model = 512
    model.n_head = 8
    model.d_head = 64
    model.d_inner = 6144
    model.n_layer = 2
    model.pre_lnorm = True
    model.dropout = 0.05
    model.mem_len = 512

    config.solver.forward.name = "anderson"
    config.solver.forward.max_steps = 12
    config.gradient.name = "phantom"
    config.gradient.steps = 3
    config.gradient.tau = 0.8
    config.precision = "bfloat16"

    config.train.epochs = 4
    config.train.batch_size = 64
    config.train.learning_rate = 1e-3
    config.train.warmup_steps = 500
    config.train.grad_clip = 0.5
    config.train.pretrain_steps = 3_000
    config.train.pretrain_layers = 4

    config.data.name = "enwik8"
    config.data.segment_length = 512
    config.eval.batch_size = 16
    config.eval.every_epochs = 0.25
    config.checkpoint.every_epochs = 0.25
    return config.lock()
