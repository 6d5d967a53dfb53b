"""Measuring operators on the user's own device, for training predictors of it.

`profile` is the whole: it plans points from model shapes (`plan`), measures them with noise control
(`measure`), coarse to fine and then where a predictor would be least sure (`queue`, `adaptive`), and keeps
what it measured so that any interruption can be resumed (`journal`, `settings`, `store`). PyTorch is imported
by `torch_device` and `kernels` alone.
"""
