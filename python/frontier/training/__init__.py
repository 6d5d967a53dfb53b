"""Train operator predictors and write them as packs. Training needs the extra `frontier-sim[train]`."""
