"""Studies: many trainings over tasks, variants, sites and seeds, and the tables that come of them."""
