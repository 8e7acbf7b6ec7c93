"""Autograd Functions equal to the networks' batch norms, pools and sums, which save little for backward.

In the supernet, n branches of one kind are computed side by side on the channel axis, (B, nC, H, W): one depthwise
convolution, one pointwise convolution and one batch norm serve all of them. Saved for backward, per branch: in a weight
step the output of each depthwise convolution, from which the backward pass recomputes the rest, and the output of a
sep_conv's first pointwise convolution; in an alpha step only the pointwise outputs. Weights are cast to the dtype of
the feature maps, so that autocast works; batch norm computes its statistics in float32 whatever that dtype is.

d: the output of a depthwise convolution, y: of a pointwise convolution or a pool, z: of a batch norm. g, g_x: the
gradients with regard to the output and x. mean, invstd: the batch statistics, mean and 1 / sqrt(var + eps). If they are
passed in, this is a recomputation (activation checkpointing), which reuses those of the first pass.

A `forward` of a variable number of tensors takes all its arguments as `*inputs`: if nothing needs a gradient,
torch.compile concludes from their number whether it takes `ctx`, and is wrong for some numbers if there are named ones.
"""
import torch
import torch.nn.functional as F
from torch.autograd import Function

from fast.depthwise import concat_channels, depthwise, depthwise_backward
from fast.pixels import Interleave, redilate
from fast.pointwise import pointwise, pointwise_backward

EPS, MOMENTUM = 1e-5, 0.1  # those of nn.BatchNorm2d
aten = torch.ops.aten


class StackWeights(Function):
    """Convolution weights (C, C', k, k), small k first -> one (nC, C', K, K) per entry of `sizes`, K the largest k.

    order: for each output channel, its index in the input order, or None if they agree; sizes: the nC. 3x3 kernels
    are zero-padded to 5x5. One call for a whole cell, because many small tensors cost more launches than work.
    """

    @staticmethod
    def forward(ctx, *inputs):
        order, sizes, dtype, *weights = inputs
        small = [weight for weight in weights if weight.size(-1) < weights[-1].size(-1)]
        stacked = torch.cat(weights[len(small):])
        if small:
            stacked = torch.cat([F.pad(torch.cat(small), [1] * 4), stacked])
        ctx.order, ctx.C, ctx.n_small, ctx.n = order, weights[0].size(0), len(small), len(weights)
        stacked = stacked if order is None else stacked[order]
        return stacked.to(dtype).split(sizes)

    @staticmethod
    def backward(ctx, *g):
        g = torch.cat(g)
        g = g if ctx.order is None else torch.empty_like(g).index_copy_(0, ctx.order, g)
        small = ()
        if ctx.n_small:
            small, g = g.split([ctx.C * ctx.n_small, ctx.C * (ctx.n - ctx.n_small)])
            small = F.pad(small, [-1] * 4).split(ctx.C)
        return None, None, None, *small, *g.split(ctx.C)


def normalise(y, mean=None, invstd=None, scale=None):
    """Batch norm of y (B, C, H, W) by its own batch statistics, or those passed in -> z, mean (C), invstd (C)."""
    if mean is None:
        return torch.native_batch_norm(y, scale, None, None, None, True, MOMENTUM, EPS)
    return torch.native_batch_norm(y, scale, None, mean, invstd.pow(-2), False, MOMENTUM, 0.0)[0], mean, invstd


def normalise_backward(g, y, scale, mean, invstd, needs_scale_grad=False):
    """Gradients of `normalise` with regard to y and scale."""
    return aten.native_batch_norm_backward(g, y, scale, None, None, mean, invstd, True, EPS,
                                           [True, needs_scale_grad, False])[:2]


class NormReLUDepthwise(Function):
    """depthwise(relu(norm(pointwise(d)))) of n branches, d (B, nC, H, W) -> (B, nC, H, W), mean (nC), invstd (nC).

    A recomputation (mean, invstd passed in) does not save the pointwise output: its memory peaks here.
    """

    @staticmethod
    def forward(ctx, d, weight, kernel, mean, invstd):
        needs_weight_grad = ctx.needs_input_grad[1]
        save_y = mean is None or not needs_weight_grad
        y = pointwise(d, weight)
        z, mean, invstd = normalise(y, mean, invstd)
        y = y if save_y else None  # frees it before the next convolution
        ctx.save_for_backward(d if needs_weight_grad else None, y, weight, kernel, mean, invstd)
        ctx.mark_non_differentiable(mean, invstd)
        ctx.set_materialize_grads(False)
        return depthwise(z.relu_(), kernel), mean, invstd

    @staticmethod
    def backward(ctx, g, *_):
        d, y, weight, kernel, mean, invstd = ctx.saved_tensors
        needs_weight_grad = ctx.needs_input_grad[1]
        y = pointwise(d, weight) if y is None else y
        z = normalise(y, mean, invstd)[0].relu_()
        g, g_kernel = depthwise_backward(g, z, kernel, needs_kernel_grad=ctx.needs_input_grad[2])
        aten.threshold_backward.grad_input(g, z, 0, grad_input=g)  # in place: memory peaks here
        del z
        g, _ = normalise_backward(g, y, None, mean, invstd)
        g_d, g_weight = pointwise_backward(g, d if needs_weight_grad else y, weight, needs_weight_grad)
        return g_d, g_weight, g_kernel, None, None


class WeightedNorm(Function):
    """sum_o w_o * norm(pointwise_o(d_o)) of n branches, d (B, nC, H, W) -> (B, C, H, W), mean (nC), invstd (nC).

    `scale` (nC) holds each w_o C times: the batch norm has no affine parameters, so its scale can be the mixing weight.
    B: the number of images; if d has more, it is interleaved (see `undilate`), and the sum is not.
    A recomputation (mean, invstd passed in) returns only the shape: `SumReLU` has the sum from the first pass.
    """

    @staticmethod
    def forward(ctx, d, scale, weight, B, mean, invstd):
        C = weight.size(1)
        needs_weight_grad = ctx.needs_input_grad[2]
        y = pointwise(d, weight) if mean is None or not needs_weight_grad else None
        if mean is None:
            z, mean, invstd = normalise(y, scale=scale)
            mixed, *others = z.split(C, dim=1) if z.size(1) > C else [z]
            for i, other in enumerate(others):
                mixed = mixed + other if i == 0 else mixed.add_(other)
            mixed = redilate(mixed, B)
        else:
            upscale = 1 if d.size(0) == B else 2
            mixed = d.new_empty(()).expand(B, C, upscale * d.size(2), upscale * d.size(3))
        ctx.save_for_backward(d if needs_weight_grad else y, scale, weight, mean, invstd)
        ctx.mark_non_differentiable(mean, invstd)
        ctx.set_materialize_grads(False)
        return mixed, mean, invstd

    @staticmethod
    def backward(ctx, g, *_):
        d, scale, weight, mean, invstd = ctx.saved_tensors
        n, needs_weight_grad = weight.size(0) // weight.size(1), ctx.needs_input_grad[2]
        y = pointwise(d, weight) if needs_weight_grad else d  # else y was saved; of d only the shape is used
        g = g if g.size(0) == d.size(0) else Interleave.apply(g)
        g, g_scale = normalise_backward(concat_channels([g] * n), y, scale, mean, invstd, ctx.needs_input_grad[1])
        g_d, g_weight = pointwise_backward(g, d, weight, needs_weight_grad)
        return g_d, g_scale, g_weight, None, None, None


class PointwiseNorm(Function):
    """norm(pointwise(x)) with affine parameters, x (B, C_in, H, W) -> (B, C_out, H, W); updates running statistics."""

    @staticmethod
    def forward(ctx, x, weight, scale, shift, running_mean, running_var):
        y = pointwise(x, weight)
        z, mean, invstd = torch.native_batch_norm(y, scale, shift, running_mean, running_var, True, MOMENTUM, EPS)
        narrows = weight.size(0) < weight.size(1)  # then y is small to save and costly to recompute
        ctx.save_for_backward(x, y if narrows else None, weight, scale, mean, invstd)
        return z

    @staticmethod
    def backward(ctx, g):
        x, y, weight, scale, mean, invstd = ctx.saved_tensors
        y = pointwise(x, weight) if y is None else y
        g, g_scale, g_shift = aten.native_batch_norm_backward(g, y, scale, None, None, mean, invstd, True, EPS,
                                                              [True, True, True])
        g_x, g_weight = pointwise_backward(g, x, weight)
        return g_x, g_weight, g_scale, g_shift, None, None


class PoolNorm(Function):
    """norm(3x3 pool(x)), x (B, C, H, W) -> (B, C, H/stride, W/stride), mean (C), invstd (C).

    mean, invstd: None, or those of the first pass. Only then are the pool and its large 8-byte indices saved; else x
    is saved, and the backward pass recomputes the pool.
    """

    @staticmethod
    def pool(x, kind, stride):
        if kind == "max":
            return aten.max_pool2d_with_indices(x, [3, 3], [stride] * 2, [1, 1])
        return aten.avg_pool2d(x, [3, 3], [stride] * 2, [1, 1], False, False), None

    @staticmethod
    def forward(ctx, x, kind, stride, mean, invstd):
        y, indices = PoolNorm.pool(x, kind, stride)
        saved = (x, None, None) if mean is None else (None, y, indices)
        z, mean, invstd = normalise(y, mean, invstd)
        ctx.save_for_backward(*saved, mean, invstd)
        ctx.kind, ctx.stride, ctx.layout = kind, stride, (x.shape, x.stride())
        ctx.mark_non_differentiable(mean, invstd)
        ctx.set_materialize_grads(False)
        return z, mean, invstd

    @staticmethod
    def backward(ctx, g, *_):
        x, y, indices, mean, invstd = ctx.saved_tensors
        if y is None:
            y, indices = PoolNorm.pool(x, ctx.kind, ctx.stride)
        else:
            x = y.new_empty_strided(*ctx.layout)  # only its shape is used
        g, _ = normalise_backward(g, y, None, mean, invstd)
        window = [3, 3], [ctx.stride] * 2, [1, 1]
        if ctx.kind == "max":
            return aten.max_pool2d_with_indices_backward(g, x, *window, [1, 1], False, indices), *[None] * 4
        return aten.avg_pool2d_backward(g, x, *window, False, False, None), *[None] * 4


class WeightedSum(Function):
    """w (m), m feature maps y (B, C, H, W) -> sum_o w_o * y_o, (B, C, H, W).

    recompute: return only the shape, because `SumReLU` has the sum from the first pass.
    """

    @staticmethod
    def forward(ctx, *inputs):
        w, recompute, *feature_maps = inputs
        ctx.save_for_backward(w, *(feature_maps if ctx.needs_input_grad[0] else ()))
        if recompute:
            return feature_maps[0].new_empty(()).expand(feature_maps[0].shape)
        (scalar, *scalars), (y, *others) = w.unbind(), feature_maps
        total = y * scalar
        for y, scalar in zip(others, scalars):
            total.addcmul_(y, scalar)
        return total

    @staticmethod
    def backward(ctx, g):
        w, *feature_maps = ctx.saved_tensors
        g_w = torch.stack([(g * y).sum() for y in feature_maps]) if feature_maps else None
        return g_w, None, *torch._foreach_mul([g] * len(w), w.unbind())


class SumReLU(Function):
    """The sum of a node's parts, and its ReLU: (B, C, H, W) each -> two (B, C, H, W).

    node: None, or in a recomputation the sum from the first pass.
    """

    @staticmethod
    def forward(ctx, *inputs):
        node, *parts = inputs
        if node is not None:
            node = node.clone()
        else:
            node = parts[0] + parts[1] if len(parts) > 1 else parts[0].clone()
            for part in parts[2:]:
                node.add_(part)
        relu = node.clamp(min=0)
        ctx.save_for_backward(relu)
        ctx.n = len(parts)
        ctx.set_materialize_grads(False)
        return node, relu

    @staticmethod
    def backward(ctx, g, g_relu):
        relu, = ctx.saved_tensors
        if g_relu is not None:  # None: no branch leaves the node
            g_relu = aten.threshold_backward(g_relu, relu, 0)
            g = g_relu if g is None else g_relu.add_(g)
        return None, *[g] * ctx.n
