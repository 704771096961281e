"""How labelled data becomes a vector (Painless Activation Steering, arXiv:2509.22739), and whether it helps."""
