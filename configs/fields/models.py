"""Fields of `config.model` by family, with their defaults."""

import ml_collections
from ml_collections.config_dict import placeholder


def _mdeq() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        dict(
            name="mdeq_classifier",  # or "mdeq_segmenter"
            channels=(24, 24),  # one entry per resolution, highest first
            num_blocks=(1, 1),
            big_kernels=(0, 0),  # how many convolutions of every block are 5x5: 0, 1, 2
            expansion=5,
            num_groups=8,
            downsample_times=0,
            weight_norm=True,
            fuse_weight_norm=False,  # true in TorchDEQ's models only
            block_gn_affine=True,
            fuse_gn_affine=True,
            post_gn_affine=False,
            dropout=0.0,
            num_classes=10,
            head_channels=(8, 16),  # classifier only
            final_channels=200,  # classifier only
            final_conv_kernel=1,  # segmenter only
        )
    )


def _repmlp(**fields) -> ml_collections.ConfigDict:
    """Networks with RepMLPs have weights for each pixel position: for one `data.image_size`."""
    return ml_collections.ConfigDict(
        dict(
            name="",
            partition=(7, 7),  # height, width; divides each map that a RepMLP sees
            kernels=(1, 3, 5),  # odd sizes of the convolutions that are merged; () for none
            groups=4,
            global_reduction=1,
            num_classes=1000,
            deployed=False,  # the merged form, as deploy.py writes it
            **fields,
        )
    )


def _repmlp_resnet(**fields) -> ml_collections.ConfigDict:
    return _repmlp(
        block="light",  # or "bottleneck", or "base" (ResNet-50's) of stages 2 and 3
        num_blocks=(3, 4, 6, 3),
        channels=(64, 256, 512, 1024, 2048),  # of the stem and of each stage
        bottleneck_reduction=(2, 4),  # bottleneck: of the RepMLPs in stages 2 and 3
        **fields,
    )


def _repmlp_segmenter() -> ml_collections.ConfigDict:
    return _repmlp_resnet(final_conv_kernel=1)  # of the head


def _repmlp_mlp() -> ml_collections.ConfigDict:
    return _repmlp(channels=(16, 32, 64), num_blocks=(2, 2, 2))


def _repmlpnet(**fields) -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        dict(
            name="",
            channels=(64, 128, 256, 512),  # one entry per stage
            num_blocks=(2, 2, 6, 2),
            # Side of the partitions. With several partitions per stage, and more channels than
            # sharesets, the original moves results to other partitions; so does this.
            partitions=(56, 28, 14, 7),
            sharesets=(1, 4, 16, 128),  # divide the channels
            kernels=(1, 3),  # odd sizes of the convolutions that are merged; () for none
            patch_size=4,
            gate_reduction=4,
            ffn_expansion=4,
            num_classes=1000,
            deployed=False,  # the merged form, as deploy.py writes it
            **fields,
        )
    )


def _repmlpnet_segmenter() -> ml_collections.ConfigDict:
    return _repmlpnet(final_conv_kernel=1)  # of the head


def _transformer() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        dict(
            name="",
            transformer=dict(
                vocab_size=placeholder(int),  # None: that of the data
                d_model=128,  # width of the state; n_head * d_head
                n_head=4,
                d_head=32,
                d_inner=512,  # width of the feed-forward layer
                n_layer=6,  # "transformer": how many times it applies its layer
                pre_lnorm=False,  # layer norms before the two parts of the layer, not after them
                weight_norm=True,
                mem_len=64,  # positions of memory; an evaluation may take more
                local_size=0,  # positions that a query sees at most; 0: 1000
                dropout=0.0,
                dropatt=0.0,  # dropout of the attention probabilities
                d_embed=128,  # width of the word embeddings; another one than d_model is projected
                cutoffs=(),  # first token of each further cluster of the adaptive softmax
                div_val=1,  # cluster i has embeddings of width d_embed // div_val**i
                tie_projs=(False,),  # a cluster: whether input and output share the projection
                # "once": a tied projection moves once a step. "each_use": once for each use, as in
                # the released recipe.
                projection_updates="once",
            ),
        )
    )


def _trellisnet() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        dict(
            name="",
            trellisnet=dict(
                vocab_size=placeholder(int),  # None: that of the data
                ninp=128,  # width of the word embeddings
                nhid=256,  # hidden features besides the output's
                nout=128,  # output features; ninp, because the embeddings are one table
                kernel_size=2,
                dilation=1,
                weight_norm=True,
                dropout=0.0,  # of output features
                dropouti=0.0,  # of embedding features
                dropouth=0.0,  # of hidden features, in the cell
                cutoffs=(),  # first token of each further cluster of the softmax
                last_row_is_padding=False,  # the original: the last token gets no input gradient
            ),
        )
    )


# Name of the family -> its fields of `config.model`.
MODEL_FIELDS = {
    "mdeq_classifier": _mdeq,
    "mdeq_segmenter": _mdeq,
    "repmlp_mlp": _repmlp_mlp,
    "repmlp_resnet": _repmlp_resnet,
    "repmlp_segmenter": _repmlp_segmenter,
    "repmlpnet": _repmlpnet,
    "repmlpnet_segmenter": _repmlpnet_segmenter,
    "deq_transformer": _transformer,
    "transformer": _transformer,
    "deq_trellisnet": _trellisnet,
}
