"""What slime's and Megatron-LM's command lines say that is no flag here: one table, read by the
parser and by docs/slime-flags.md."""
