"""Faults in what a run is made of and goes on from: options, models in their roles, optimizer, checkpoints."""

from ..fault import Fault

_RESUMED = ("trainer::test_oracle_27_resumed_equals_uninterrupted_to_the_bit",)

FAULTS = (
    Fault(
        "missing-eos-penalty-replaces", "config.py",
        '= "subtract", self.missing_eos_penalty', '= "replace", self.missing_eos_penalty',
        "TRL subtracts the penalty", ("scoring::test_oracle_16_a_stop_token_of_ones_own",),
    ),
    Fault(
        "kl-target-and-horizon-swapped", "config.py",
        "self.kl_coef, self.kl_target, self.kl_horizon", "self.kl_coef, self.kl_horizon, self.kl_target",
        "the target is ten thousand nats", ("options::test_kl_controllers_by_name",),
    ),
    Fault(
        "k3-accepted", "config.py",
        'self.kl_estimator != "k1"', 'self.kl_estimator not in ("k1", "k3")',
        "an option that TRL has is taken and not obeyed", ("enumerable::test_oracle_04_k3_in_the_reward_is_refused",),
    ),
    Fault(
        "dropout-comes-back", "setup.py",
        "            disable_dropout(module)", "            module.eval()",
        "the update's train() switches dropout on again",
        ("agreement::test_oracle_08_and_09_the_first_minibatch_has_ratio_1_to_the_bit",),
    ),
    Fault(
        "schedule-never-ends", "setup.py",
        "num_training_steps=iterations,", "num_training_steps=iterations + 1,",
        "the learning rate does not fall to 0", ("trainer::test_oracle_25_the_learning_rate_falls_to_exactly_0",),
    ),
    Fault(
        "reference-shares-weights", "setup.py",
        "ref_model = copy.deepcopy(policy)", "ref_model = copy.copy(policy)",
        "freezing the reference freezes the policy, which it follows",
        ("options::test_estimators_without_a_critic_train_none",),
    ),
    Fault(
        "biases-decay", "setup.py",
        "args.weight_decay if parameter.ndim > 1 else 0.0", "args.weight_decay",
        "norms and biases are pulled to 0", ("options::test_the_critics_own_learning_rate_and_weight_decay",),
    ),
    Fault(
        "critic-rate-for-all", "setup.py",
        "if critic and args.critic_learning_rate", "if args.critic_learning_rate",
        "the policy learns at the critic's rate", ("options::test_the_critics_own_learning_rate_and_weight_decay",),
    ),
    Fault(
        "last-iteration-dropped", "setup.py",
        "math.ceil(args.total_episodes / args.batch_size)", "args.total_episodes // args.batch_size",
        "episodes that do not fill an iteration are not played", ("options::test_batch_arithmetic_has_trls_names",),
    ),
    Fault(
        "resume-forgets-the-coefficient", "checkpoint.py",
        '    trainer.kl_controller.coefficient = progress["kl_coefficient"]\n', "",
        "an adapted KL coefficient starts anew", _RESUMED,
    ),
    Fault(
        "resume-forgets-the-schedule", "checkpoint.py",
        '    trainer.lr_scheduler.load_state_dict(progress["scheduler"])\n', "",
        "the learning rate starts anew", _RESUMED,
    ),
    Fault(
        "resume-forgets-the-optimizer", "checkpoint.py",
        "    trainer.accelerator.load_state(os.path.join(folder, _STATE))\n",
        "    import torch\n"
        '    trainer.actor_critic.load_state_dict(torch.load(os.path.join(folder, _STATE, "pytorch_model.bin")))\n',
        "Adam's moments start anew", _RESUMED,
    ),
    Fault(
        "resume-forgets-the-generators", "checkpoint.py",
        "    trainer.accelerator.load_state(os.path.join(folder, _STATE))\n",
        "    import torch\n    generators = torch.get_rng_state()\n"
        "    trainer.accelerator.load_state(os.path.join(folder, _STATE))\n"
        "    torch.set_rng_state(generators)\n",
        "random numbers go on from the start of the program",
        ("checkpoint::test_oracle_27_random_numbers_go_on_where_they_stopped",),
    ),
    Fault(
        "resume-forgets-the-iteration", "checkpoint.py",
        '    trainer.state.global_step = progress["iteration"]\n', "",
        "the first prompts are played again", _RESUMED,
    ),
    Fault(
        "critic-not-saved", "checkpoint.py",
        '    save_critic(trainer, state, Path(folder, "critic"))\n', "",
        "the critic is lost with the run", ("trainer::test_saved_models_load_and_answer_alike",),
    ),
)  # fmt: skip
