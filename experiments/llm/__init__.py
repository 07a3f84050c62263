"""Language models: architectures, files, text, pruning, evaluation.

Methods that prune or fine-tune matrices are in sparsejax.oneshot and
sparsejax.finetune; what runs a config is in drivers/ and runs/.
"""
