"""Layers that models share: convolutions, norms, dropout masks, resizing."""

from mdeq_jax.layers.conv import Conv, conv2d, torch_uniform, weight_norm
from mdeq_jax.layers.conv_bn_relu import ConvBNReLU
from mdeq_jax.layers.conv_norm import ConvNorm, GroupedConv, grouped_conv2d
from mdeq_jax.layers.dense import torch_dense
from mdeq_jax.layers.dropout import dropout, dropout_mask, sample_keys
from mdeq_jax.layers.group_norm import group_norm
from mdeq_jax.layers.grouped_dense import GroupedDense, grouped_orthogonal
from mdeq_jax.layers.kernel import DenseWeights, Kernel, apply_dense
from mdeq_jax.layers.norm import Affine, BatchNorm
from mdeq_jax.layers.resize import resize_bilinear, upsample_nearest

__all__ = [
    "Affine",
    "BatchNorm",
    "Conv",
    "ConvBNReLU",
    "ConvNorm",
    "DenseWeights",
    "GroupedConv",
    "GroupedDense",
    "Kernel",
    "apply_dense",
    "conv2d",
    "dropout",
    "dropout_mask",
    "group_norm",
    "grouped_conv2d",
    "grouped_orthogonal",
    "resize_bilinear",
    "sample_keys",
    "torch_dense",
    "torch_uniform",
    "upsample_nearest",
    "weight_norm",
]
