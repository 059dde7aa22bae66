"""The table of an evaluation."""

from __future__ import annotations

from pipeline.report.evaluation import evaluation_lines

GOOD = {
    "name": "gsm8k",
    **{"reward_mean": 0.5, "reward_mean_low": 0.4, "reward_mean_high": 0.6},
    **{"pass_at_1": 0.5, "pass_at_8": 0.75, "pass_at_8_low": 0.7, "pass_at_8_high": 0.8},
    **{"num_prompts": 100, "num_samples": 800, "num_failed": 1, "truncated_fraction": 0.25},
    **{"response_length_mean": 123.4, "policy_version_min": 3, "policy_version_max": 5},
    "first_failure": "EngineError: gone",
}
FAILED = {
    **{"name": "aime", "reward_mean": None, "num_prompts": 0, "num_samples": 8, "num_failed": 8},
    **{"policy_version_min": -1, "policy_version_max": -1, "error": "all 8 samples failed"},
}


def test_a_line_a_data_set_and_what_went_wrong() -> None:
    titles, good, failed, *below = evaluation_lines([GOOD, FAILED])
    assert titles.split()[:5] == ["data", "set", "reward", "pass@1", "pass@8"]
    cells = "gsm8k 0.500 [0.400, 0.600] 0.500 0.750 [0.700, 0.800] 100 800 1 25.0% 123 3 to 5"
    assert good.split() == cells.split()
    assert failed.split() == ["aime", "-", "-", "-", "0", "8", "8", "-", "-", "-"]
    assert titles.index("version") == good.index("3 to 5")
    assert below == [
        "[low, high]: 95% confidence, over prompts",
        "gsm8k: EngineError: gone",
        "aime: all 8 samples failed",
    ]
