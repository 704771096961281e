"""Generated behaviour: whether steering changes what a model writes, judged on its answers, and what that costs."""
