"""Tasks of lm-eval for our candidates (`bridge`), and our engine as a model of lm-eval (`harness_model`)."""
