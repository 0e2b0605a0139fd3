"""What the studies say of wrong arguments."""

import pytest

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
    ("languages_emoji", "--methods teir,joint+teir", "unknown method joint+teir"),
    ("languages_emoji", "--methods teir:fast", "'fast' in 'teir:fast' is no learning"),
    ("languages_emoji", "--methods teir:-1", "is no learning rate"),
    ("languages_emoji", "--iterations 0", "--iterations 0 must be 1 or more"),
    ("languages_emoji", "--task-decay 1", "--task-decay 1.0 is no share"),
    ("languages_emoji", "--task-decay nan", "--task-decay nan is no share"),
    ("languages_emoji", "--search --methods teir", "for all methods, with seed 0"),
    ("languages_emoji", "--search --seeds 1", "for all methods, with seed 0"),
    ("leaderboard", "--methods Sequential,Modx", "Modx unknown; use Zero-shot, Seq"),
    ("leaderboard", "--streams space", "space unknown; use time, domain, language"),
    ("multi_domain_emoji", "--methods moe", "unknown method moe"),
    ("multi_domain_emoji", "--methods zscl:1:2:3", "'zscl:1:2:3' must be zscl:LR:W"),
    ("multi_domain_emoji", "--curve --methods zscl:1", "--curve is of one training"),
    ("multi_domain_emoji", "--seeds 0,one", "'0,one' must be numbers"),
    ("multi_domain_emoji", "--device tpu", NO_TPU),
    ("multi_domain_emoji", "--device meta:", "'meta:' is no device"),
    ("mtil", "--root x --methods moe", "unknown method moe"),
    ("mtil", "--root x --views image,all", "unknown view all; use image, batch"),
    ("tic_emoji", "--methods sequentiel", "unknown method sequentiel"),
    ("tic_emoji", "--seeds one", "must be numbers"),
    ("tic_emoji", "--preset quick", "invalid choice"),
    ("tic_emoji", "--methods lwf:fast", "'fast' in 'lwf:fast' is no learning rate"),
    ("tic_emoji", "--search", "--search is for a pretrained start"),
    ("tic_emoji", "--methods joint --pretrained icons", "joint starts from random"),
]


@pytest.mark.parametrize("study, arguments, message", WRONG)
def test_main__wrong_arguments_are_named(study, arguments, message, capsys):
    script = load_script(f"experiments/{study}.py")
    with pytest.raises(SystemExit):
        script.main(arguments.split())
    assert message in capsys.readouterr().err
