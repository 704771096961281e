"""What steering means and does to a model: plans, their rows on the device, and the hooks that apply them."""
