"""Mistakes of a command line, with the whole message that each gets: key, value as typed, what it must be, a hint."""

import re
import shlex

import pytest

from pretrain.config.checks import check_run
from pretrain.config.cluster import ClusterConfig
from pretrain.config.errors import ConfigError
from pretrain.config.load import CONF_DIR, load_generate_config, load_run_config, sweep_members, with_overrides

LARGEST = "is not a finite number\n  hint: the largest is about 1.8e308"
SWEEP = "stands for several values, which only a sweep takes"
SUBMIT = "add -m to `pretrain train` or `pretrain submit` for one run of each"
BRACKETS = """close its brackets, and quote special characters, as in 'data.inputs=["Bücher (1).txt"]'"""
NO_KEY = "unknown key"


def described(key: str) -> str:
    return f"`pretrain explain {key}` describes it"


MISTAKES = [
    # keys
    ("optim.lrr=1", f"optim.lrr=1: {NO_KEY}\n  hint: did you mean optim.lr?"),
    ("+optim.lrr=1", f"optim.lrr=1: {NO_KEY}\n  hint: did you mean optim.lr?"),
    ("++optim.lrr=1", f"optim.lrr=1: {NO_KEY}\n  hint: did you mean optim.lr?"),
    ("modle=tiny", f"modle=tiny: {NO_KEY}\n  hint: did you mean model?"),
    ("lr=1e-3", f"lr=1e-3: {NO_KEY}\n  hint: did you mean optim.lr?"),
    ("seed=3", f"seed=3: {NO_KEY}\n  hint: did you mean run.seed, tokenizer.seed or data.near_dedup.seed?"),
    (
        "batch_size=8",
        f"batch_size=8: {NO_KEY}\n  hint: did you mean train.global_batch_size, train.micro_batch_size or "
        "evaluation.micro_batch_size?",
    ),
    (
        "optim.velocity_of_light=1",
        f"optim.velocity_of_light=1: {NO_KEY}\n  hint: `pretrain explain optim` lists its keys",
    ),
    ("+qqqqqq=1", f"qqqqqq=1: {NO_KEY}\n  hint: `pretrain explain` lists all keys"),
    ("checkpoint.async_=true", f"checkpoint.async_=true: {NO_KEY}\n  hint: did you mean checkpoint.async?"),
    ("hydra.run.dir=x", f"hydra.run.dir=x: {NO_KEY}\n  hint: did you mean run.dir?"),
    ("model@other=tiny", f"model@other=tiny: {NO_KEY}\n  hint: did you mean model?"),
    ("+optim.lr=1", "optim.lr=1: is a key already: it takes no + before it\n  hint: write optim.lr=1"),
    ("~optim.lr", "optim.lr: a key cannot be removed\n  hint: set another value, as in optim.lr=..."),
    ("run=foo", "run=foo: is a section, not a key\n  hint: set its keys, as in run.name=..."),
    # options of groups
    (
        "experiment=quick",
        "experiment=quick: must be the name of one of its files\n  hint: did you mean quickstart? choose quickstart",
    ),
    ("optim=null", "optim=null: must be the name of one of its files\n  hint: choose adamw, muon"),
    ("optim=1", "optim=1: must be the name of one of its files\n  hint: choose adamw, muon"),
    ("+optim=adamw", "optim=adamw: is set already: it takes no + before it\n  hint: write optim=adamw"),
    # words that are not key=value
    ("optim.lr", "optim.lr: is not key=value\n  hint: write optim.lr=VALUE, without spaces"),
    ("optim.lr:1e-3", "optim.lr:1e-3: is not key=value\n  hint: did you mean optim.lr=1e-3?"),
    ("--optim.lr=1", "--optim.lr=1: a key has no dashes before it\n  hint: did you mean optim.lr=1?"),
    ("optim.lr = 1", "optim.lr = 1: there must be no spaces around the equals sign\n  hint: write optim.lr=1"),
    ("data.inputs=[a", f"data.inputs=[a: cannot be read as a value\n  hint: {BRACKETS}"),
    ("data.inputs=[Bücher.txt]", f"data.inputs=[Bücher.txt]: cannot be read as a value\n  hint: {BRACKETS}"),
    ("run.name=a=b", """run.name=a=b: cannot be read as a value\n  hint: quote special characters: 'run.name="a=b"'"""),
    (
        "run.dir=~/runs/x",
        'run.dir=~/runs/x: cannot be read as a value: ~ is not expanded there\n  hint: write "run.dir=$HOME/runs/x"',
    ),
    # commas
    (
        "data.inputs=a.txt,b.txt",
        f"data.inputs=a.txt,b.txt: {SWEEP}\n  hint: write data.inputs=[a.txt,b.txt] for a list, or {SUBMIT}",
    ),
    ("data.name=a,b", f"data.name=a,b: {SWEEP}\n  hint: write 'data.name=\"a,b\"' for text with a comma, or {SUBMIT}"),
    ("optim.lr=0,001", f"optim.lr=0,001: {SWEEP}\n  hint: write 0.001 if it is one number, or {SUBMIT}"),
    ("model=tiny,tiny_llama", f"model=tiny,tiny_llama: {SWEEP}\n  hint: {SUBMIT}"),
    ("train.max_steps=range(1,4)", f"train.max_steps=range(1,4): {SWEEP}\n  hint: {SUBMIT}"),
    # numbers
    ("optim.lr=1e400", f"optim.lr=1e400: {LARGEST}"),
    ("data.near_dedup.similarity=1e400", f"data.near_dedup.similarity=1e400: {LARGEST}"),
    ("optim.lr=nan", f"optim.lr=nan: {LARGEST}"),
    ("train.max_tokens=inf", f"train.max_tokens=inf: {LARGEST}"),
    ("data.mixture={a: 1e400}", f"data.mixture.a=inf: {LARGEST}"),
    ("optim.eps=1e-400", "optim.eps=1e-400: is too small for a number\n  hint: the smallest above 0 is about 5e-324"),
    ("optim.lr=fast", f"optim.lr=fast: must be a number\n  hint: {described('optim.lr')}"),
    ("optim.lr=", f"optim.lr=: must be a number\n  hint: {described('optim.lr')}"),
    ("optim.lr=null", f"optim.lr=null: must be a number\n  hint: {described('optim.lr')}"),
    ("optim.lr=true", f"optim.lr=true: must be a number\n  hint: {described('optim.lr')}"),
    ("optim.lr={}", f"optim.lr={{}}: must be a number\n  hint: {described('optim.lr')}"),
    (
        "train.max_steps=0.5",
        f"train.max_steps=0.5: must be an integer, or null\n  hint: {described('train.max_steps')}",
    ),
    (
        "model.num_layers='2'",
        "model.num_layers='2': must be an integer\n  hint: write model.num_layers=2, without quotes",
    ),
    ("data.shard_bytes=256MB", "data.shard_bytes=256MB: must be an integer\n  hint: write data.shard_bytes=256000000"),
    (
        "data.shard_bytes=1.5GiB",
        "data.shard_bytes=1.5GiB: must be an integer\n  hint: write data.shard_bytes=1610612736",
    ),
    (
        "train.micro_batch_size=Auto",
        "train.micro_batch_size=Auto: must be an integer or auto\n  hint: did you mean auto?",
    ),
    # true, false, and choices
    (
        "engine.zero_stage=true",
        f"engine.zero_stage=true: must be 0, 1, 2 or 3\n  hint: {described('engine.zero_stage')}",
    ),
    ("engine.zero_stage=4", f"engine.zero_stage=4: must be 0, 1, 2 or 3\n  hint: {described('engine.zero_stage')}"),
    ("model.bias=1", f"model.bias=1: must be true or false\n  hint: {described('model.bias')}"),
    ("checkpoint.async=yes", f"checkpoint.async=yes: must be true or false\n  hint: {described('checkpoint.async')}"),
    ("engine.precision=FP32", "engine.precision=FP32: must be fp32, bf16 or fp16\n  hint: did you mean fp32?"),
    ("tracking.wandb=false", "tracking.wandb=false: must be offline, online or off\n  hint: did you mean off?"),
    # text, lists and mappings
    ("run.name=1e3", "run.name=1e3: must be text\n  hint: quote it: 'run.name=\"1e3\"'"),
    ("run.name=2024_01", "run.name=2024_01: must be text\n  hint: quote it: 'run.name=\"2024_01\"'"),
    ("cluster.memory=500", "cluster.memory=500: must be text, or null\n  hint: quote it: 'cluster.memory=\"500\"'"),
    (
        "cluster.environment.A=1.5",
        "cluster.environment.A=1.5: must be text or an integer\n  hint: quote it: 'cluster.environment.A=\"1.5\"'",
    ),
    ("run.name=nan", "run.name=nan: must be text\n  hint: quote it: 'run.name=\"nan\"'"),
    ("run.name=1e400", "run.name=1e400: must be text\n  hint: quote it: 'run.name=\"1e400\"'"),
    ("run.name=1e-400", "run.name=1e-400: must be text\n  hint: quote it: 'run.name=\"1e-400\"'"),
    ("cluster.memory=inf", "cluster.memory=inf: must be text, or null\n  hint: quote it: 'cluster.memory=\"inf\"'"),
    (
        "cluster.environment.A=nan",
        "cluster.environment.A=nan: must be text or an integer\n  hint: quote it: 'cluster.environment.A=\"nan\"'",
    ),
    ("data.inputs=nan", f"data.inputs=nan: must be a list such as [a,b]\n  hint: {described('data.inputs')}"),
    ("run.name=null", f"run.name=null: must be text\n  hint: {described('run.name')}"),
    (
        "data.inputs=text.txt",
        "data.inputs=text.txt: must be a list such as [a,b]\n  hint: write data.inputs=[text.txt]",
    ),
    ("data.inputs={a: 1}", f"data.inputs={{a: 1}}: must be a list such as [a,b]\n  hint: {described('data.inputs')}"),
    ("data.mixture={a: x}", f"data.mixture.a=x: must be a number\n  hint: {described('data.mixture.a')}"),
    (
        "data.mixture=web",
        f"data.mixture=web: must be a mapping such as {{name: 1}}, or null\n  hint: {described('data.mixture')}",
    ),
    (
        "data.mixture_later=[{weights: {a: 1}}]",
        f"data.mixture_later[0].after_tokens: a value must be given\n  hint: {described('data.mixture_later')}",
    ),
    ("optim.lr=???", "optim.lr=???: a value must be given\n  hint: add optim.lr=..."),
    # interpolation
    (
        "run.dir=${run.dirr}",
        "run.dir=${run.dirr}: cannot be resolved: Interpolation key 'run.dirr' not found\n"
        "  hint: refer to a key by its dotted "
        "name, as in ${run.name}",
    ),
    # rules between keys
    (
        "train.max_steps=null",
        "train.max_steps=null, train.max_tokens=null: give one of them\n  hint: set the other to null",
    ),
    ("data.mixture={empty: 0}", "data.mixture={empty: 0.0}: at least one weight must be greater than 0"),
]


@pytest.mark.parametrize(("word", "message"), MISTAKES, ids=[mistake[0] for mistake in MISTAKES])
def test_a_mistake_is_reported_by_key_value_rule_and_hint(word: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_run(load_run_config([word]), world_size=1)
    assert str(caught.value) == message


@pytest.mark.parametrize("message", [message for _, message in MISTAKES])
def test_no_message_shows_the_program_behind_it(message: str) -> None:
    noise = r"hydra\b(?!\.run)|pydantic|omegaconf|multirun|None|True|False|\bstr\b|\bint\b|\bdict\b|Traceback|'[a-z]+':"
    assert not re.search(noise, message) and str(CONF_DIR) not in message


@pytest.mark.parametrize(
    ("message", "key", "value"),
    [
        (message, word.partition("=")[0], word.partition("=")[2])
        for word, message in MISTAKES
        if "quote it" in message or ("quote special" in message and "data.inputs" not in word)
    ],
)
def test_a_hint_to_quote_gives_the_typed_text_to_that_key(message: str, key: str, value: str) -> None:
    (word,) = shlex.split(message.rpartition(": ")[2])
    place: object = load_run_config([word])
    for part in key.split("."):
        place = place[part] if isinstance(place, dict) else getattr(place, part)
    assert place == value


@pytest.mark.parametrize(
    ("word", "same"),
    [
        ("+tokenizer.path=x", "tokenizer.path=x"),
        ("+run.init_from=x", "run.init_from=x"),
        ("+data.inputs=[a,b]", "data.inputs=[a,b]"),
        ("+run={name: x}", "run.name=x"),
    ],
)
def test_a_plus_is_allowed_before_keys_without_a_value(word: str, same: str) -> None:
    assert load_run_config([word]) == load_run_config([same])


def test_what_has_a_default_without_its_file_can_be_removed() -> None:
    plain = load_run_config([])
    assert load_run_config(["experiment=quickstart", "~experiment"]) == plain == load_run_config(["~experiment"])
    of_cluster = load_run_config(["cluster=gpu_8x80gb", "~cluster.environment"]).cluster
    assert of_cluster.environment == {} and of_cluster.gpus_per_node == 8
    assert load_run_config(["cluster=gpu_8x80gb", "~cluster"]).cluster == ClusterConfig()


SECRET_URL = "https://me:hunter2@host/a.jsonl"


@pytest.mark.parametrize(
    "word",
    [
        SECRET_URL,
        f"data.inputs={SECRET_URL}",
        f"data.inputs={SECRET_URL},b.txt",
        f"data.inputs=[{SECRET_URL}",
        f"data.name={SECRET_URL},b",
        f"data.path={SECRET_URL}(",
        f"data.path = {SECRET_URL}",
        f"--data.path={SECRET_URL}",
        f"+data.path={SECRET_URL}",
        f"optim.lr='{SECRET_URL}'",
        f"model={SECRET_URL}",
        r"data.inputs=https\://me\:hunter2@host/a.jsonl",
        "data.path=https://host/a?signature=hunter2",
        "data.inputs='https://host/a?signature=hunter2'",
        "data.inputs=${https://me:hunter2@host}",
    ],
)
def test_neither_a_message_nor_its_hint_repeats_a_password(word: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_run_config([word])
    assert "host" in str(caught.value) and "hunter2" not in str(caught.value)


def test_refused_overrides_are_shown_without_passwords() -> None:
    config = load_run_config([])
    with pytest.raises(ConfigError, match=r"^data\.path=https://host/a\.jsonl: here only"):
        with_overrides(config, [f"data.path={SECRET_URL}"], ("profile.",))
    with pytest.raises(ConfigError, match=r"^data\.path=https://host/a\.jsonl,range\(1,2\): cannot be counted out"):
        sweep_members([f"data.path={SECRET_URL},range(1,2)"])


@pytest.mark.parametrize("value", ["a", "/tmp/x", "1", "a:b"])
@pytest.mark.parametrize("sign", ["", "+", "++"])
def test_table_entries_are_set_with_and_without_a_plus(sign: str, value: str) -> None:
    config = load_run_config(["cluster=gpu_8x80gb", f"{sign}cluster.environment.NCCL_DEBUG={value}"])
    assert str(config.cluster.environment["NCCL_DEBUG"]) == value
    assert load_run_config([f"{sign}cluster.environment={{A: b}}"]).cluster.environment == {"A": "b"}
    assert load_run_config([f"{sign}data.mixture.web=0.7"]).data.mixture == {"web": 0.7}


def test_an_option_that_does_not_exist_names_the_nearest_and_all() -> None:
    with pytest.raises(
        ConfigError,
        match=r"^model=gpt3_2b: .*\n  hint: did you mean gpt3_2\.7b\? choose .*, tiny, tiny_.*tiny_llama",
    ):
        load_run_config(["model=gpt3_2b"])


def test_keys_of_generate_are_suggested_to_generate_only() -> None:
    with pytest.raises(ConfigError, match=r"^topk=1: unknown key\n  hint: did you mean top_k\?$"):
        load_generate_config(["run=x", "topk=1"])
    with pytest.raises(ConfigError, match=r"^model=tiny: unknown key\n  hint: `pretrain generate --help` lists all"):
        load_generate_config(["run=x", "model=tiny"])


def test_a_number_of_thousands_of_digits_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^train\.max_steps=9+: cannot be read as a value"):
        load_run_config(["train.max_steps=" + "9" * 5000])


def test_the_name_of_other_programs_is_understood() -> None:
    with pytest.raises(ConfigError, match=r"^optim.learning_rate=1: unknown key\n  hint: did you mean optim\.lr\?$"):
        load_run_config(["optim.learning_rate=1"])
