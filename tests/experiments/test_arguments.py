"""What the studies say of wrong arguments."""

from argparse import ArgumentParser

import pytest

from avalanche_clip.training.templates.step import NonFiniteLossError
from tests.scripts import load_script

NO_TPU = "'tpu' is no device of this machine; use cpu"
WRONG = [
    ("alignment", "--methods sequential,modx", "unknown method modx"),
    (
        "alignment",
        "--methods mod-x+replay:5",
        "in 'mod-x+replay:5' replay has no weight",
    ),
    ("alignment", "--validation --stream domains", "go with --stream time"),
    ("alignment", "--iterations 0", "'0' must be a whole number"),
    ("alignment", "--lr nan --methods replay", "--lr nan must be a positive number"),
    ("knowledge_emoji", "--methods sequential,modx", "unknown method modx; use sequ"),
    ("knowledge_emoji", "--search", "settings are those of tic_emoji.py"),
    ("knowledge_emoji", "--pretrained emoji-2010", "choose them with --search"),
    ("languages_emoji", "--methods teir,joint+teir", "unknown method joint+teir"),
    ("languages_emoji", "--methods teir:fast", "'fast' in 'teir:fast' is no learning"),
    ("languages_emoji", "--methods teir:-1", "is no learning rate"),
    ("languages_emoji", "--iterations 0", "'0' must be a whole number of 1 or more"),
    ("languages_emoji", "--methods frozen:1e-3", "frozen trains nothing"),
    ("languages_emoji", "--search --pretrained icon", "Did you mean 'icons'"),
    ("languages_emoji", "--pretrained icon --methods frozen", "'icon' is unknown"),
    ("languages_emoji", "--task-decay 1", "--task-decay 1.0 is no share"),
    ("languages_emoji", "--task-decay nan", "--task-decay nan is no share"),
    ("languages_emoji", "--search --methods teir", "for all methods, with seed 0"),
    ("languages_emoji", "--search --seeds 1", "for all methods, with seed 0"),
    ("leaderboard", "--methods Sequential,Modx", "Modx unknown; use Zero-shot, Seq"),
    ("leaderboard", "--streams space", "space unknown; use time, domain, language"),
    ("multi_domain_emoji", "--methods moe", "unknown method moe"),
    ("multi_domain_emoji", "--methods zscl:1:2:3", "'zscl:1:2:3' must be zscl:LR:W"),
    ("multi_domain_emoji", "--methods zscl:nan:2", "with numbers above 0"),
    ("multi_domain_emoji", "--methods lora:-1", "'lora:-1' must be lora:LR with"),
    ("multi_domain_emoji", "--methods patching:1e-3:2", "ALPHA is at most 1"),
    ("multi_domain_emoji", "--methods moe-adapters:1e-3:16.5", "HIDDEN a whole"),
    ("multi_domain_emoji", "--curve --methods zscl:1", "--curve is of one training"),
    ("multi_domain_emoji", "--search --curve", "leave out --seeds and --curve"),
    ("multi_domain_emoji", "--search --seeds 1", "--search is with seed 0"),
    ("multi_domain_emoji", "--search --methods lora:1", "lora:1; --search is for fine"),
    ("multi_domain_emoji", "--search --methods zero-shot", "zero-shot; --search is f"),
    ("multi_domain_emoji", "--search --pretrained icon", "Did you mean 'icons'"),
    ("multi_domain_emoji", "--pretrained emoji-2010", "choose them with --search"),
    ("multi_domain_emoji", "--iterations few", "'few' must be a whole number"),
    ("multi_domain_emoji", "--seeds 0,one", "'0,one' must be numbers"),
    ("multi_domain_emoji", "--device tpu", NO_TPU),
    ("multi_domain_emoji", "--device meta:", "'meta:' is no device"),
    ("mtil", "--root x --methods moe", "unknown method moe"),
    ("mtil", "--root x --views image,all", "unknown view all; use image, batch"),
    ("mtil", "--root x --methods coleclip --shots 5", "coleclip has published epochs"),
    ("online_emoji", "--methods sit-lora", "unknown method sit-lora; use continual-"),
    ("online_emoji", "--methods sit-lora-both:0", "'0' in 'sit-lora-both:0' is no lea"),
    ("online_emoji", "--methods continual-clip:1", "trains nothing and has no rate"),
    ("online_emoji", "--search --seeds 1", "is of all methods, with seed 0"),
    ("online_emoji", "--pretrained emoji-2010", "choose them with --search"),
    ("online_emoji", "--pretrained icon --search", "Did you mean 'icons'"),
    ("open_domain_emoji", "--methods coleclip,moe", "unknown method moe; use zero-"),
    ("open_domain_emoji", "--methods coleclip:-1", "'coleclip:-1' must be coleclip:LR"),
    ("open_domain_emoji", "--search --methods coleclip", "CoLeCLIP, with seed 0"),
    ("open_domain_emoji", "--pretrained emoji-2010", "choose them with --search"),
    ("published", "cifar10 --root x", "invalid choice: 'cifar10'"),
    ("published", "core50 --root x --methods sit-lora-both", "core50 has no method"),
    ("published", "core50 --root x --as-released", "--as-released is of SIT, which"),
    ("published", "core50 --root /nowhere", "folders of CORe50 are missing"),
    ("temporal_robustness", "--data x --old tiny-emoji:icons", "needs --old and --new"),
    ("temporal_robustness", "--new tiny-emoji", "as a name it has no weights"),
    ("temporal_robustness", "--new tiny-emoji:x", "pretrained='x' is unknown"),
    ("tic_emoji", "--methods sequentiel", "unknown method sequentiel"),
    ("tic_emoji", "--seeds one", "must be numbers"),
    ("tic_emoji", "--preset quick", "invalid choice"),
    ("tic_emoji", "--methods lwf:fast", "'fast' in 'lwf:fast' is no learning rate"),
    ("tic_emoji", "--search", "--search is for a pretrained start"),
    ("tic_emoji", "--pretrained icon", "pretrained='icon' is unknown"),
    ("tic_emoji", "--pretrained icon --search", "Did you mean 'icons'"),
    ("tic_emoji", "--pretrained emoji-2010", "choose them with --search"),
    ("tic_emoji", "--precision fp8", "invalid choice: 'fp8'"),
    ("zero_shot_icons", "--models tiny", "unknown model tiny"),
    ("zero_shot_icons", "--pretrained icon", "Did you mean 'icons'"),
]


@pytest.mark.parametrize("study, arguments, message", WRONG)
def test_main__wrong_arguments_are_named(study, arguments, message, capsys):
    script = load_script(f"experiments/{study}.py")
    with pytest.raises(SystemExit):
        script.main(arguments.split())
    assert message in capsys.readouterr().err


def test_refusals__faults_keep_their_traceback():
    tool = load_script("experiments/command_line.py")
    with pytest.raises(ValueError), tool.refusals(ArgumentParser()):
        zip_of_unequal = list(zip([1], [], strict=True))
        assert not zip_of_unequal


@pytest.mark.parametrize("kind", [ValueError, NonFiniteLossError])
def test_main__what_a_run_refuses(kind, tmp_path, monkeypatch, capsys):
    def run(*args):
        raise kind("runs/x holds another run")

    script = load_script("experiments/alignment.py")
    monkeypatch.setattr(script, "run", run)
    words = ["--methods", "mod-x:5", "--lr", "1e-3", "--out", str(tmp_path)]
    with pytest.raises(SystemExit):
        script.main([*words, "--pretrained", "emoji-2010"])
    assert "error: runs/x holds another run" in capsys.readouterr().err
