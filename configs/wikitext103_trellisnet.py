"""DEQ-TrellisNet on WikiText-103, as in the first version of the original repository.

Paper: Bai, Kolter, Koltun, Deep Equilibrium Models, 2019 (1909.01377).
Published: 29.0 perplexity (test).
Cost: 174,168,738 parameters; 49 segments of 100 words per step (7 GPUs or so in the original).
The original divides its rate by 10 after epochs 15, 20 and 23, or earlier if the validation loss
    stops falling; this recipe keeps to the epochs. The forward and the backward solve stop at the
    original's residuals for one segment: 1e-6 and 2e-10 times the root of the numbers in a state.

    python train.py --config=configs/wikitext103_trellisnet.py --config.data.data_dir=DIR
"""

from mdeq_jax.configs import default

STATE = 100 * 2 * (1500 + 500)  # numbers in the state of a segment


def get_config():
    config = default.get_config("deq_trellisnet")
    config.name = "wikitext103_trellisnet"

    model = config.model.trellisnet
    model.vocab_size = 267_735
    model.cutoffs = (2_800, 20_000, 76_000)
    model.ninp = 500
    model.nhid = 1500
    model.nout = 500
    model.kernel_size = 2
    model.dilation = 1
    model.weight_norm = True
    model.dropout = 0.1
    model.dropouti = 0.1
    model.dropouth = 0.1
    model.last_row_is_padding = True

    config.solver.forward.max_steps = 45
    config.solver.forward.stop_mode = "abs"
    config.solver.forward.tol = 1e-6 * STATE**0.5
    config.solver.backward.max_steps = 45
    config.solver.backward.stop_mode = "abs"
    config.solver.backward.tol = 2e-10 * STATE**0.5
    config.gradient.name = "ift"
    config.gradient.linearize_at = "z_star"

    config.train.epochs = 25
    config.train.batch_size = 49
    config.train.optimizer = "adam"
    config.train.learning_rate = 1e-3
    config.train.schedule = "step"
    config.train.decay_epochs = (15.0, 20.0, 23.0)
    config.train.grad_clip = 0.07
    config.train.grad_clip_eps = 1e-6
    config.train.pretrain_steps = 30_000
    config.train.pretrain_layers = 40

    config.data.name = "wikitext103"
    config.data.segment_length = 100
    config.eval.batch_size = 4
    return config.lock()
