"""What an iteration has to cost: the floating-point operations that its real tokens need.

Counted are matrix products alone, two operations a multiply-add, of the trunk's weights and the output layer; attention
scores, norms and the sampler's choice are left out, so a limit of 1 cannot be reached.
"""

from typing import Any


def iteration_operations(
    trunk: int, output_layer: int, prompt_tokens: int, response_tokens: int, epochs: int, *, critic: bool, full: bool
) -> float:
    """Count the operations that one iteration of PPO needs.

    Each conversation is read by policy, reference and reward model once, and by the critic; the sampler reads it once
    more. Logits are needed for response tokens alone: once each for sampling, old and reference log-probabilities. An
    epoch runs policy and critic forward and backward: three times the forward pass, twice where weights are frozen.

    Args:
        trunk: Weights of the matrices of a trunk.
        output_layer: Weights of the output layer.
        prompt_tokens: Of all conversations of the iteration.
        response_tokens: Of all conversations of the iteration.
        epochs: Passes over them.
        critic: Whether the critic has a trunk of its own.
        full: Whether all weights of the policy are trained, or adapters alone.
    """
    tokens = prompt_tokens + response_tokens
    forward = 2 * trunk * tokens
    logits = 2 * output_layer * response_tokens
    evaluation = (4 + critic) * forward + 3 * logits
    policy = (3 if full else 2) * (forward + logits)
    return float(evaluation + epochs * (policy + (3 * forward if critic else 0)))


def weights_of(policy: Any) -> tuple[int, int]:
    """Count the weights of the matrices in a policy's trunk, and of its output layer."""
    base = policy.get_base_model() if hasattr(policy, "get_base_model") else policy
    layers = sum(p.numel() for name, p in base.model.layers.named_parameters() if p.ndim == 2 and "lora_" not in name)
    return layers, base.get_output_embeddings().weight.numel()
