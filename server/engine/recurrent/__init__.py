"""Recurrent layers: linear attention, state spaces and short convolutions, whose past is a state of fixed size."""
