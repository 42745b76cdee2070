"""Every field that a config may set, with its default.

A config starts from `get_config()`, changes some fields and returns it. The command line may
override any field (`--config.solver.forward.max_steps=20`). Fields that are not declared here are
refused.

A field that is `None` here takes the default of the function that reads it. Setting it for a
function that does not have it (a ring size `m` for Broyden, for example) is an error. Settings
without an effect on the run (of the backward solver, if the gradient solves nothing) are listed
when the run starts. The command line cannot set a number back to `None`: write a config instead.
"""

import ml_collections
from ml_collections.config_dict import placeholder

from mdeq_jax.configs.fields.models import MODEL_FIELDS


def _solver(max_steps: int) -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        dict(
            name="broyden",  # "broyden", "anderson" or "fixed_point_iteration"
            max_steps=max_steps,
            tol=1e-3,
            stop_mode="rel",  # "rel": |f(z) - z| / |f(z)|, "abs": |f(z) - z|; per sample
            history_dtype=placeholder(str),  # broyden: "float32" or "bfloat16"
            m=placeholder(int),  # anderson: ring size
            lam=placeholder(float),  # anderson: regularisation of the Gram matrix
            beta=placeholder(float),  # anderson: mixing
            tau=placeholder(float),  # fixed_point_iteration: damping
        )
    )


def get_config(model: str = "mdeq_classifier") -> ml_collections.ConfigDict:
    """Returns the defaults, which most of the released experiments share.

    Args:
        model: name of the family, whose fields `config.model` then has.
    """
    config = ml_collections.ConfigDict()
    config.name = "default"  # also names the default work directory, runs/NAME
    config.seed = 0
    config.task = placeholder(str)  # None: the task that the model's family is for
    config.precision = "float32"  # or "bfloat16": of the network; the solver state is float32

    # Pallas kernels for group norms and Broyden's history: True, False, or None, which uses them on
    # a GPU if the batch gives its multiprocessors enough to do. On an H200 they made training 1.1
    # to 1.2 and inference 1.1 times as fast (benchmarks/RESULTS.md).
    config.pallas = placeholder(bool)

    # CPUs: programs compile in three quarters of the time, and run up to a tenth slower; for short
    # trainings. The programs read it from the config on their command line, also if they resume.
    config.quick_compilation = False

    config.model = MODEL_FIELDS[model]()
    config.model.name = model
    config.solver = ml_collections.ConfigDict(
        dict(forward=_solver(max_steps=18), backward=_solver(max_steps=20))
    )
    config.gradient = ml_collections.ConfigDict(
        dict(
            # "ift", "phantom", "neumann", "one_step", "shine", "reversible" or "unroll"
            name="ift",
            linearize_at=placeholder(str),  # ift: "z_star" or "f_z_star"
            # ift, refined shine: the solution of a sample whose adjoint solve ends worse than it
            # began: "damped" replaces it with a truncated sum (ift's default), "keep" keeps it
            # (shine's), "cap" limits its length
            unconverged=placeholder(str),
            # phantom, neumann: number of terms; reversible, unroll: number of steps, if fewer than
            # the forward solver's max_steps
            steps=placeholder(int),
            tau=placeholder(float),  # phantom, neumann, unroll: damping
            beta=placeholder(float),  # reversible: relaxation
            remat=placeholder(bool),  # unroll: recompute steps instead of keeping them
            refine_steps=placeholder(
                int
            ),  # shine: of a backward solve that starts from its estimate
        )
    )
    config.jacobian = ml_collections.ConfigDict(
        dict(
            weight=0.0,  # of the Jacobian loss in the equilibrium phase
            frequency=0.0,  # probability that a step includes it
            increment_every=placeholder(int),  # steps after which the weight grows by 0.1
            stop_epoch=placeholder(int),  # from this epoch on the weight is 0
            pretrain_weight=0.0,  # in the pretraining phase
        )
    )
    config.train = ml_collections.ConfigDict(
        dict(
            epochs=50.0,
            batch_size=128,  # over all devices of all hosts
            optimizer="adam",  # or "adamw", "sgd", "muon"
            learning_rate=1e-3,
            end_learning_rate=1e-6,
            weight_decay=0.0,  # added to the gradient, or (adamw, muon) to the direction
            momentum=0.9,  # sgd only
            nesterov=False,  # sgd only
            schedule="cosine",  # or "step", "polynomial", "constant"
            warmup_steps=0,  # the rate rises linearly over these, before the schedule begins
            warmup_learning_rate=placeholder(float),  # at step 0; None: 0
            schedule_from_start=False,  # count from step 0, not from after the warm-up
            first_step_at_full_rate=False,  # step 0 has `learning_rate`, before the warm-up
            decay_epochs=placeholder(tuple),  # step: when the rate falls
            decay_factor=placeholder(float),  # step: factor of each decay; None: 0.1
            decay_power=placeholder(float),  # polynomial; None: 0.9
            grad_clip=placeholder(float),  # global norm; inf or None: no clipping
            grad_clip_eps=0.0,  # added to the norm that is clipped; PyTorch: 1e-6
            accumulate_steps=1,  # parts into which each device splits its share of a batch
            ema_decay=placeholder(float),  # moving average of the weights, used in evaluation
            max_skipped_updates=20,  # in a row, with a loss or gradient that is not finite
            label_smoothing=0.0,
            mixup=0.0,  # classification: of the Beta distribution of the shares; 0: off
            cutmix=0.0,  # classification: the same for boxes; with mixup a batch takes one of them
            class_weights=placeholder(object),  # segmentation: "cityscapes"; or one per class
            ohem_threshold=placeholder(float),  # segmentation: train on pixels predicted below it
            ohem_min_kept=placeholder(int),  # and on at least this many pixels of a batch
            sync_batch_norm=False,  # statistics over all devices instead of one device
            pretrain_steps=0,  # steps that train `pretrain_layers` plain layers first
            pretrain_layers=0,
            random_forward_delta=0,  # with the Jacobian loss, limits vary by U{-delta..above}
            random_forward_above=1,  # 0 in the language models
        )
    )
    config.data = ml_collections.ConfigDict(
        dict(
            # Images: "digits", "cifar10", "imagenet2012", "image_folder", "cityscapes", "camvid",
            # "image_label_folder". Text: "pydoc", "text_file", "wikitext103", "enwik8", "text8",
            # "tfds_text".
            name="digits",
            # TFDS sets: the folder that holds NAME/VERSION; text_file: the file; else the set's own
            # folder
            data_dir="",
            image_size=(8, 8),  # height, width of a training image
            augment=False,  # the set's usual random transforms of training images
            rand_augment=0,  # classification: random operations after those (RandAugment)
            rand_augment_magnitude=placeholder(int),  # drawn from 0 to this; None: 10
            crop_fraction=placeholder(float),  # image files: of an evaluated image; None: 0.875
            num_workers=0,  # processes that decode and transform; 0 is this process
            on_error="raise",  # or "skip": count, report and omit unreadable examples
            convert_to_rgb=False,  # image files: convert grey, CMYK, 16-bit, ... images
            eval_split=placeholder(str),  # split or, for image_folder, folder; None: the usual
            eval_image_size=placeholder(tuple),  # segmentation: whole images are padded to this
            base_size=placeholder(int),  # segmentation: longer side at scale 1; None: the set's
            scale_factor=placeholder(int),  # segmentation: scale 0.5 + k/10, k to this; None: 16
            unit=placeholder(str),  # text: "word" or "character"; None: the set's usual
            segment_length=placeholder(int),  # text: tokens of a training segment; None: 64
            eval_segment_length=placeholder(int),  # text: in evaluation; None: as in training
            # text: an evaluated segment begins so many tokens after the one before, and the tokens
            # that both hold are only context; None: segments do not overlap, memory connects them
            eval_stride=placeholder(int),
            train_split=placeholder(str),  # wikitext103, tfds_text: None: "train"
            tfds_name=placeholder(str),  # tfds_text: name of the set, with its config
            tfds_feature=placeholder(str),  # tfds_text: feature with the text; None: "text"
        )
    )
    config.init = ml_collections.ConfigDict(
        dict(
            from_checkpoint="",  # work directory whose stem and cell training starts from
        )
    )
    config.eval = ml_collections.ConfigDict(
        dict(
            every_epochs=1.0,
            batch_size=placeholder(int),  # None: as in training
            # "on": an example that is solved makes room for the next one, instead of waiting for
            # the slowest of its batch; "auto": on CPUs, once the first batches have shown that it
            # saves more time than it takes to compile; "off"
            continuous_batching="auto",
            # examples in flight on each device, and texts that --generate makes at a time; None: 16
            # on CPUs
            slots=placeholder(int),
            scales=(1.0,),  # segmentation: of the image; the probabilities are averaged
            flip=False,  # segmentation: average with the mirrored image
            window=placeholder(tuple),  # segmentation: height, width; None: whole images
            stride=placeholder(tuple),  # segmentation: of the windows; None: 2/3 of them
            # segmentation: --predict starts from the last frame's equilibrium, unless
            # continuous_batching is "on"
            warm_start=True,
            spectral_radius_every_epochs=placeholder(float),  # of the cell's Jacobian; None: never
        )
    )
    config.log = ml_collections.ConfigDict(
        dict(
            every_steps=50,  # a line of training figures
            tensorboard=True,  # WORKDIR/tensorboard
            convergence_plot=True,  # WORKDIR/convergence.png, at the end
        )
    )
    config.checkpoint = ml_collections.ConfigDict(
        dict(
            every_epochs=1.0,
            keep=3,  # number of newest checkpoints; WORKDIR/best holds the best one
        )
    )
    return config
