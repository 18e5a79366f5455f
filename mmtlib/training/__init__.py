"""Train one run or a whole stage: `training.stage.train_runs`; the loop is `training.loop.Trainer`."""
