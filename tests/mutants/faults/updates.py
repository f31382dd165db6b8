"""Faults in the loop: log-probabilities, actor and critic, the update, the decoder's weights, the trainer."""

from ..fault import Fault

_LITERAL = ("update::test_the_gradient_is_the_literal_mean_over_the_minibatchs_tokens",)
_SCORED = ("logprobs_oracles::test_scoring_without_gradients_gives_the_plain_values_in_any_tiles",)
_KEPT = ("logprobs_oracles::test_what_is_kept_for_the_backward_pass_changes_no_gradient",)
_PLAIN_LAYER = ("logprobs::test_values_and_gradients_are_the_plain_ones",)
_PLAIN = ("agreement::test_oracle_10_logprobs_are_those_of_the_plain_model",)
_PROCESSES = ("processes",)
_SAMPLER = ("sampler::test_responses_are_those_of_the_literal_loop",)
_ADAPTER = ("critics::test_each_role_runs_with_its_own_adapter_alone",)
_MERGED = ("rollout_policy::test_the_merged_copy_answers_as_the_adapted_policy",)

FAULTS = (
    Fault(
        "logits-without-temperature", "models/kernels.py",
        "scaled = logits / temperature", "scaled = logits * 1.0",
        "the ratio is that of another policy than the one that sampled", _SCORED,
    ),
    Fault(
        "gradient-without-temperature", "logprobs.py",
        "(logprob_grad / ctx.temperature)", "logprob_grad",
        "the gradient is off by the temperature", _PLAIN_LAYER,
    ),
    Fault(
        "module-without-temperature", "logprobs.py",
        "logprobs_and_entropy(logits / temperature, targets)", "logprobs_and_entropy(logits, targets)",
        "adapters on the output layer switch the temperature off",
        ("logprobs::test_adapters_on_the_output_layer_are_called_as_a_module",),
    ),
    Fault(
        "entropy-of-unnormalised-logits", "logprobs.py",
        "return chosen - normaliser, normaliser - weighted.sum(-1)", "return chosen - normaliser, -weighted.sum(-1)",
        "the entropy depends on a constant that is added to all logits",
        ("logprobs::test_a_banned_token_costs_no_entropy",),
    ),
    Fault(
        "target-in-two-places", "logprobs.py",
        "powers[rows[own], own] = 0", "powers[rows[own], own] *= 1",
        "the chosen token's own probability is subtracted twice", _PLAIN_LAYER,
    ),
    Fault(
        "weight-gradient-without-the-target", "logprobs.py",
        "(hidden * at_target)", "(hidden * 0 * at_target)",
        "the output layer learns to make all other tokens rare, and none likely", _PLAIN_LAYER,
    ),
    Fault(
        "factors-of-the-first-tile", "logprobs.py",
        "-factors[number, :, None]", "-factors[0, :, None]",
        "each part of the vocabulary has another peak", _KEPT,
    ),
    Fault(
        "kept-tile-made-for-another", "logprobs.py",
        "ctx.gradient_dtype, tile, keep=True", "ctx.gradient_dtype, slice(0, tile.stop - tile.start), keep=True",
        "what there was no room for is made again from the first tokens", _KEPT,
    ),
    Fault(
        "token-of-the-first-tile", "logprobs.py",
        "targets[None] // TILE", "targets[None] * 0",
        "logits of later tiles are read at the first one's tokens", _SCORED,
    ),
    Fault(
        "banned-tile-not-a-number", "models/kernels.py",
        ".clamp(min=torch.finfo(scaled.dtype).min)", "",
        "-inf - -inf is not a number",
        ("logprobs::test_a_tile_whose_tokens_are_all_banned_has_no_part",),
    ),
    Fault(
        "value-behind-the-token", "actor_critic.py",
        "torch.cat([microbatch.predictors, microbatch.last])",
        "torch.cat([microbatch.predictors + 1, microbatch.last])",
        "the baseline has seen the action", _PLAIN,
    ),
    Fault(
        "critic-on-the-policys-trunk", "actor_critic.py",
        "hidden = self._run(self.value_model, microbatch)",
        "hidden = self._run(self.policy, microbatch)",
        "a separate critic's trunk is not used", _PLAIN,
    ),
    Fault(
        "critic-with-the-policys-adapter", "actor_critic.py",
        "with self.adapters.using(CRITIC):", "with nullcontext():",
        "the value loss moves the policy, and the critic's adapter never learns", _ADAPTER,
    ),
    Fault(
        "recomputed-with-the-policys-adapter", "setup.py",
        '**options, "context_fn": actor_critic.adapters.checkpoint_contexts}', "**options}",
        "the backward pass recomputes another critic than the one that answered",
        ("critics::test_recomputed_activations_give_the_same_gradients",),
    ),
    Fault(
        "critics-adapter-at-the-policys-rate", "setup.py",
        ' or belongs_to(name, CRITIC)', "",
        "critic_learning_rate moves the value head alone",
        ("critics::test_the_optimizer_has_every_parameter_once_at_its_rate",),
    ),
    Fault(
        "rollouts-with-every-adapter", "rollout_policy.py",
        "own = [adapter for adapter in module.active_adapters if adapter in present]", "own = sorted(present)",
        "the sampler answers as policy and critic together",
        ("critics::test_rollouts_merge_the_policys_adapter_alone",),
    ),
    Fault(
        "loaded-critic-without-its-head", "critics.py",
        "    _on_device_of(policy, critic).load_state_dict(weights)\n", "    _on_device_of(policy, critic)\n",
        "a loaded critic says 0", ("critics::test_a_saved_critic_has_the_values_that_it_had",),
    ),
    Fault(
        "shared-trunk-detached", "actor_critic.py",
        "values = score(hidden.to(", "values = score(hidden.detach().to(",
        "the value loss does not reach the trunk", _LITERAL,
    ),
    Fault(
        "reference-keeps-its-adapters", "actor_critic.py",
        "self.adapters.using() if reference else nullcontext()", "nullcontext()",
        "the reference moves with the policy: the KL is 0",
        ("scoring::test_the_reference_of_adapters_is_the_policy_without_them",),
    ),
    Fault(
        "mean-of-means", "update.py",
        "accelerator.backward(loss * (scale if microbatch.counts else 0.0))",
        "accelerator.backward(\n"
        "                    loss / (len(microbatch.targets) * len(parts)) * (1.0 if microbatch.counts else 0.0)\n"
        "                )",
        "a token in a short microbatch weighs more",
        ("update::test_oracle_12_microbatches_do_not_change_the_gradient",),
    ),
    Fault(
        "loss-over-episodes", "update.py",
        "scale = accelerator.num_processes / tokens", "scale = accelerator.num_processes / len(rows)",
        "the step grows with the length of the responses", _LITERAL,
    ),
    Fault(
        "averaged-over-processes-twice", "update.py",
        "scale = accelerator.num_processes / tokens", "scale = 1 / tokens",
        "the step shrinks with the number of processes", _PROCESSES,
    ),
    Fault(
        "tokens-of-one-process", "update.py",
        "tokens = int(batch.mask[rows].sum())", "tokens = sum(len(part.targets) for part in parts)",
        "each process divides by its own tokens", _PROCESSES,
    ),
    Fault(
        "gradient-kept", "update.py",
        "    optimizer.zero_grad(set_to_none=True)\n", "",
        "each minibatch adds to the gradient of those before", _LITERAL,
    ),
    Fault(
        "gradient-unclipped", "clipping.py",
        "if limit is None or norm <= limit:", "if True:",
        "max_grad_norm does nothing", ("update::test_oracle_26_the_gradient_norm_is_clipped", "clipping"),
    ),
    Fault(
        "gradient-scale-kept", "clipping.py",
        "        del inner.grad_scale", "        pass",
        "after one large gradient all others are divided too", ("clipping::test_a_smaller_gradient_is_left_alone",),
    ),
    Fault(
        "gradient-scale-not-read", "clipping.py",
        '"_step_supports_amp_scaling", False', '"no_such_thing", True',
        "an optimizer that does not read the factor gets it", ("clipping::test_the_step_is_that_of_clipped_gradients",),
    ),
    Fault(
        "infinite-gradient-applied", "update.py",
        "if norm.isfinite():", "if not norm.isnan():",
        "one infinite gradient makes every weight NaN", ("update_oracles",),
    ),
    Fault(
        "same-permutation-every-epoch", "update.py",
        "order = torch.randperm(size, generator=generator)",
        "order = torch.randperm(size, generator=generator.manual_seed(seed))",
        "minibatches are the same in every epoch", ("update::test_oracle_15_each_sample_once_an_epoch_in_a_new_order",),
    ),
    Fault(
        "rows-that-do-not-divide-dropped", "update.py",
        "order.tensor_split(minibatches)",
        "order[: max(size // minibatches, 1) * minibatches].tensor_split(minibatches)",
        "some episodes are never learnt", ("update::test_oracle_15_each_sample_once_an_epoch_in_a_new_order",),
    ),
    Fault(
        "entropy-punished", "update.py",
        "policy_losses.sum() - parameters.entropy_coefficient", "policy_losses.sum() + parameters.entropy_coefficient",
        "the bonus is a penalty", _LITERAL,
    ),
    Fault(
        "ratio-detached", "update.py",
        "importance_ratio(outputs.logprobs, old_logprobs)", "importance_ratio(outputs.logprobs.detach(), old_logprobs)",
        "the policy does not learn", _LITERAL,
    ),
    Fault(
        "ratio-to-the-reference", "update.py",
        "batch.logprobs[microbatch.rows][mask]", "batch.ref_logprobs[microbatch.rows][mask]",
        "the ratio is to the reference, not to the policy that sampled", _LITERAL,
    ),
    Fault(
        "value-coefficient-forgotten", "update.py",
        "parameters.value_coefficient * value_losses.sum()", "value_losses.sum()",
        "vf_coef does nothing", _LITERAL,
    ),
    Fault(
        "value-clipped-at-the-policys-range", "update.py",
        "old_values, returns, parameters.value_clip_range", "old_values, returns, parameters.clip_range",
        "cliprange_value does nothing", ("update_oracles",),
    ),
    Fault(
        "update-without-temperature", "update.py",
        "model(microbatch, parameters.temperature,", "model(microbatch, 1.0,",
        "new log-probabilities are at another temperature than old ones", _LITERAL,
    ),
    Fault(
        "adapter-not-merged", "rollout_policy.py",
        ".weight.float() + delta)", ".weight.float())",
        "responses are sampled from the reference", _MERGED,
    ),
    Fault(
        "decoder-never-refreshed", "rollout_policy.py",
        "        fresh = self._copy is None\n",
        "        if self._copy is not None:\n            return self._copy\n"
        "        fresh = True\n",
        "all responses are of the policy of the first iteration", _MERGED,
    ),
    Fault(
        "released-what-is-not-renewed", "rollout_policy.py",
        "for name in self._renewed:", "for name, _ in list(self._copy.named_parameters()):",
        "from the second iteration on the sampler has no embedding, or the policy no output layer",
        ("rollout_policy::test_what_is_written_anew_takes_no_memory_between_rollouts",),
    ),
    Fault(
        "sampled-without-temperature", "sampler.py",
        "logits = logits / self.parameters.temperature", "logits = logits / 1.0",
        "the temperature is in the update alone", _SAMPLER,
    ),
    Fault(
        "noise-of-the-first-token", "sampler.py",
        "self.noise[i][n] for", "self.noise[i][0] for",
        "one number decides on every token of a response", _SAMPLER,
    ),
    Fault(
        "stop-banned-too-long", "sampler.py",
        "n < self.requests[i].min_tokens", "n <= self.requests[i].min_tokens",
        "the shortest response is one token longer than configured", _SAMPLER,
    ),
    Fault(
        "limit-one-early", "sampler.py",
        "len(result.token_ids) >= self.requests[request].max_tokens",
        "len(result.token_ids) + 1 >= self.requests[request].max_tokens",
        "the longest response is one token shorter than configured", _SAMPLER,
    ),
    Fault(
        "prompt-read-at-padding", "sampler.py",
        "[torch.arange(len(rows)), prompts.lengths - 1]", "[:, -1]",
        "short prompts are answered from their padding", _SAMPLER,
    ),
    Fault(
        "positions-one-late", "sampler.py",
        "positions = self.cache.lengths[:active].clone()", "positions = self.cache.lengths[:active] + 1",
        "sampled tokens stand one position behind where they are trained", _SAMPLER,
    ),
    Fault(
        "moved-row-says-anothers-token", "sampler.py",
        "            self.last_token[row] = self.last_token[last]\n", "",
        "a row that moves goes on from another row's token", _SAMPLER,
    ),
    Fault(
        "top-p-drops-the-token-that-reaches-it", "sampler.py",
        "ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)", "ordered.softmax(-1).cumsum(-1)",
        "the kept mass is below p", ("sampler::test_top_p_keeps_the_fewest_tokens_that_reach_the_mass",),
    ),
    Fault(
        "whitened-per-process", "trainer.py",
        "return [episode for _, episode in sorted(gathered, key=lambda pair: pair[0])]", "return own",
        "each process whitens its own share, and no two have the same batch", _PROCESSES,
    ),
    Fault(
        "every-iteration-in-the-same-order", "trainer.py",
        "np.random.SeedSequence((args.seed, iteration))", "np.random.SeedSequence(args.seed)",
        "minibatches are the same in every iteration",
        ("update::test_oracle_15_the_permutation_differs_between_iterations",),
    ),
    Fault(
        "coefficient-adapted-to-a-step", "trainer.py",
        'self.kl_controller.update(metrics["kl"], len(batch))', 'self.kl_controller.update(metrics["kl"], 1)',
        "the coefficient reacts as if an iteration were one episode",
        ("trainer::test_metrics_are_those_of_the_episodes",),
    ),
    Fault(
        "schedule-stands-still", "trainer.py",
        "            self.lr_scheduler.step()\n", "            pass\n",
        "the learning rate stays", ("trainer::test_oracle_25_the_learning_rate_falls_to_exactly_0",),
    ),
)  # fmt: skip
