"""What keys are called elsewhere, and which of kdcli's keys is meant by a word. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from kdcli.config.keys import options_of
from kdcli.config.methods import METHODS
from kdcli.config.run import RunConfig

_MOST = 3
_LONGEST_NAME = 60
"""No key is as long; comparing longer words with all of them would take long."""

OTHER_WORDS: Mapping[str, str] = {
    # optimiser and schedule
    "learning_rate lr0 base_lr initial_lr init_lr max_lr peak_lr eta step_size": "optim.lr",
    "wd l2 decay weight_decay_rate l2_reg": "optim.weight_decay",
    "opt optim_name optimiser": "optim.optimizer",
    "scheduler lr_scheduler lr_schedule sched lr_scheduler_type": "optim.schedule",
    "warmup_steps warmup_epochs warmup_ratio": "optim.warmup",
    "min_lr eta_min lr_min lrf": "optim.min_lr_ratio",
    "max_grad_norm grad_clip gradient_clip gradient_clip_val clip_norm clip": "optim.clip_grad",
    "lr_decay decay_factor": "optim.decay_rate",
    "lr_steps decay_epochs lr_decay_epochs": "optim.milestones",
    # length and machine
    "num_epochs n_epochs max_epochs num_train_epochs epoch iterations": "train.epochs",
    "bs batch train_batch_size per_device_train_batch_size samples_per_gpu": "train.batch_size",
    "grad_accum gradient_accumulation gradient_accumulation_steps accumulate accumulate_grad_batches accum_iter": (
        "train.accumulation"
    ),
    "model_ema ema_decay moving_average": "train.ema",
    "amp fp16 bf16 precision half dtype autocast": "train.mixed_precision",
    "gpu gpus cuda accelerator mps": "train.device",
    "nproc nproc_per_node world_size num_gpus n_gpu processes": "train.num_processes",
    "sync_bn syncbn": "train.sync_batchnorm",
    "save_every save_steps save_freq save_period checkpoint_interval ckpt_every": "train.checkpoint_every",
    "save_total_limit keep_last max_checkpoints": "train.keep_checkpoints",
    "eval_every eval_steps eval_interval val_every val_freq check_val_every_n_epoch": "train.validate_every",
    "early_stop early_stopping early_stopping_patience earlystopping stop_after": "train.patience",
    "torch_compile torchcompile": "train.compile",
    "gradient_checkpointing grad_checkpointing checkpoint_activations activation_checkpoint use_checkpoint": (
        "train.activation_checkpointing"
    ),
    "report_to logger log_to wandb tensorboard mlflow trackio": "train.track",
    "random_seed manual_seed random_state rng": "seed",
    "save_dir output_dir out_dir out run_dir work_dir project exp_dir log_dir": "output",
    # models
    "img_size imgsz input_size resolution img image_resolution crop_size": "student.image_size teacher.image_size",
    "max_seq_length max_len seq_len seq_length sequence_length context_length": "student.max_length teacher.max_length",
    "checkpoint ckpt teacher_checkpoint teacher_ckpt teacher_path path_t t_ckpt resume_teacher": "teacher.weights",
    "model_t teacher_model teacher_arch teacher_name t_model": "teacher.name",
    "model_s student_model student_arch student_name s_model model arch architecture model_name backbone": (
        "student.name"
    ),
    "use_pretrained finetune fine_tune imagenet": "student.pretrained",
    "device_map fsdp fsdp2 fully_shard shard sharding sharded_teacher model_parallel": "teacher.sharded",
    "load_in_8bit load_in_4bit quantization_config quantize quantise quantized bitsandbytes bnb int8 int4 nf4": (
        "teacher.quantization"
    ),
    "drop_path_rate stochastic_depth droppath": "student.drop_path",
    "pooling_strategy pool": "student.pooling",
    # data
    "class_weight weight_classes cls_weights weighted_loss loss_weights pos_weight": "data.class_weights",
    "oversample oversampling weighted_sampler weighted_random_sampler class_balanced balanced rebalance": (
        "data.balanced_sampling"
    ),
    "dataset dataset_name data_dir data_path data_set train_dir path": "data.name",
    "num_workers n_workers dataloader_num_workers loader_workers threads": "data.workers",
    "stream iterable iterable_dataset": "data.streaming",
    "shuffle_buffer shuffle_buffer_size buffer_size": "data.stream_buffer",
    "val_split val_fraction validation_split valid_fraction val_size val_ratio": "data.validation_fraction",
    "test_split test_size test_ratio": "data.test_fraction",
    "train_split": "data.splits.train",
    "few_shot labels_fraction num_labels n_labels shots_per_class": "data.labels_per_class",
    "num_classes class_list": "data.classes data.class_names",
    "text_field sentence_column input_column": "data.text_column",
    "label target labels label_field target_column": "data.label_column",
    "ignore_index void_label": "data.ignore_label",
    "mlm_probability mask_ratio": "data.mask_probability",
    # augmentation
    "hflip horizontal_flip fliplr random_flip": "augment.flip",
    "auto_augment autoaugment aa randaugment rand_augment randaug trivialaugment aug augmentation": "augment.policy",
    "random_erasing random_erase reprob erasing cutout": "augment.erase",
    "jitter hsv": "augment.color_jitter",
    "mixup_alpha": "augment.mixup",
    "cutmix_alpha": "augment.cutmix",
    "random_resized_crop rrc scale": "augment.crop_scale",
    "padding": "augment.pad",
    # distillation
    "t tau temp kd_t kd_temperature": "temperature",
    "alpha lambda lam loss_weight kd_weight distill_weight distillation_weight kd_alpha kd_ratio": (
        "weight feature_weight"
    ),
    "smoothing": "label_smoothing",
    "feat_weight feature_loss_weight": "feature_weight",
    "distill loss kd_loss distill_loss distillation_type algorithm criterion kd_method": "method",
    "layer layers hook hooks hint_layer hint_layers feature_layer taps tap": "feature_layers",
    "proj projection_head regressor connector": "projector",
    "norm normalization normalisation": "normalize",
    "way n_way nway": "episodes.ways",
    "shot k_shot kshot n_shot": "episodes.shots",
    "num_episodes n_episodes": "episodes.number",
    "query n_query": "episodes.queries",
}
"""Words of other packages and papers, parted by spaces -> keys: a dotted one of the run, or one of methods by its last
part."""

_PLACES = ("student", "teacher", "data", "augment", "optim", "train", "episodes", "embedding")
"""Sections, those first that are meant where several have a key of the same name."""

_BY_WORD = {word: keys.split() for words, keys in OTHER_WORDS.items() for word in words.split()}


def plain(name: str) -> str:
    """Return a word as keys are written."""
    return name.strip().strip("-").lower().replace("-", "_").replace(" ", "_").rpartition(".")[2]


def keys_meant(name: str, *, fuzzy: bool = True) -> list[str]:
    """Return the keys that ``name`` may mean, the likeliest first, at most three; methods' as ``methods.NAME.KEY``.

    Those of the same last part come first, then those that are called so elsewhere, then, if ``fuzzy``, those whose
    name is like it.
    """
    word = plain(name)
    if not word or len(word) > _LONGEST_NAME:
        return []
    by_last = _by_last_part()
    found = list(by_last.get(word, ()))
    for key in _BY_WORD.get(word, ()):
        found += [key] if key in options_of(RunConfig) else by_last.get(key, ())
    if not found and fuzzy:
        words = get_close_matches(word, [*by_last, *_BY_WORD], n=_MOST, cutoff=0.75)
        found = [key for close in words for key in keys_meant(close, fuzzy=False)]
    return list(dict.fromkeys(found))


def shown(keys: Sequence[str]) -> str:
    """Return ``optim.lr, temperature (of dkd, dist and 9 other methods)``, at most three."""
    words: list[str] = []
    methods: dict[str, list[str]] = {}
    for key in keys:
        if key.startswith("methods."):
            _, method, last = key.split(".", 2)
            methods.setdefault(last, []).append(method)
        else:
            words.append(key)
    for last, names in methods.items():
        more = len(names) - 2
        rest = f" and {more} other methods" if more > 1 else f" and {names[2]}" if more == 1 else ""
        words.append(f"{last} (of {', '.join(names[:2])}{rest})")
    return ", ".join(words[:_MOST])


def _by_last_part() -> dict[str, list[str]]:
    """Return the dotted keys by their last part: of the run, without copies of its sections, then of methods."""
    found: dict[str, list[str]] = {}
    for key, option in options_of(RunConfig).items():
        is_copy = key.startswith(("student.source.", "student.tokenizer.", "eval_data.", "embedding.optim."))
        if not is_copy and (option.section is None or "." not in key):
            found.setdefault(key.rpartition(".")[2], []).append(key)
    del found["name"]
    for keys in found.values():
        keys.sort(key=lambda key: _PLACES.index(key.partition(".")[0]) if "." in key else -1)
    for method, section in METHODS.items():
        for key in section.model_fields:
            if key != "method":
                found.setdefault(key, []).append(f"methods.{method}.{key}")
    return found
