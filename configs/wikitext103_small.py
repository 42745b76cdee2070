"""A small DEQ-Transformer on the words of WikiText-103's validation split, for two CPU cores.

It trains on the 217,646 validation tokens and is evaluated on the 245,569 test tokens. Words that
the validation split lacks are <unk>, which makes the test easier than the usual one: do not compare
with published figures. It is for comparing models with each other.

Result: perplexity 317 and 362 on the test words (seeds 0 and 1) with 2 % of the solves not
    converged; 347 and 370 for the explicit network of the second command.
Cost: 2,635,981 parameters; 1,065 steps of 16 segments of 64 words.

    python train.py --config=configs/wikitext103_small.py --config.data.data_dir=DIR
    python train.py --config=configs/wikitext103_small.py --config.data.data_dir=DIR \\
        --config.model.name=transformer --config.train.pretrain_steps=0 --workdir=runs/explicit
"""

from mdeq_jax.configs import default


def get_config():
    config = default.get_config("deq_transformer")
    config.name = "wikitext103_small"

    model = config.model.transformer
    model.d_embed = 128
    model.d_model = 128
    model.n_head = 4
    model.d_head = 32
    model.d_inner = 256
    model.n_layer = 6  # "transformer": the explicit, weight-tied network to compare with
    model.pre_lnorm = True
    model.mem_len = 64
    model.dropout = 0.1
    model.cutoffs = (1000, 4000)
    model.tie_projs = (False, False, False)

    config.solver.forward.name = "anderson"
    config.solver.forward.max_steps = 12
    config.solver.backward.name = "anderson"
    config.solver.backward.max_steps = 12
    config.gradient.name = "ift"
    config.jacobian.weight = 1.0  # without it the solves diverge within an epoch
    config.jacobian.frequency = 0.5

    config.train.epochs = 5
    config.train.batch_size = 16
    config.train.learning_rate = 3e-3
    config.train.end_learning_rate = 1e-4
    config.train.warmup_steps = 50
    config.train.grad_clip = 1.0
    config.train.pretrain_steps = 212  # one epoch
    config.train.pretrain_layers = 2

    config.data.name = "wikitext103"
    config.data.train_split = "valid"
    config.data.eval_split = "test"
    config.data.segment_length = 64
    config.eval.batch_size = 32
    config.log.every_steps = 53
    config.log.tensorboard = False
    return config.lock()
