"""Trains a vector from labelled data (Painless Activation Steering, arXiv:2509.22739), and tests whether it helps."""
